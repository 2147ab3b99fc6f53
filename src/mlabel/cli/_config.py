"""Options from a file and from `--set`: what they may hold, and how they become what the command line would say.

A file can come from a stranger. It is read whole or not at all, up to a size and a depth; it can say what options can
say, and nothing in it is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlabel._checks import DataError
from mlabel.cli._commands import COMMANDS
from mlabel.recipes import Recipe
from mlabel.training import TrainConfig

# In the worst case the time of reading TOML goes with the square of its length, and that of the parts of a name.
MAX_BYTES = {"TOML": 2**16, "JSON": 2**22}
MAX_DEPTH = 8
_MAX_DOTS = 64
_STRING = re.compile(r""""[^"\\]*"|'[^']*'""")  # without escapes, and so found in one pass
# Options about how a command is used, not about what it does; and a program, which is run, so that no file names it.
_OF_USE = frozenset({"help", "config", "set", "debug", "command", "program"})
PAIRS = "NAME=VALUE"  # the metavar of options that are given as such, which are tables in a file


class Listing:
    """The type of an option whose text is a list, such as `64,96`; a file gives a list."""

    def __init__(self, each: Callable[[str], Any], *, keep_text: bool = False) -> None:
        self.each = each
        self.keep_text = keep_text  # where the text may be a file's name

    def __call__(self, text: str) -> Any:
        if self.keep_text:
            return text
        try:
            return tuple(self.each(word.strip()) for word in text.split(",") if word.strip())
        except ValueError:
            raise argparse.ArgumentTypeError(f"numbers separated by commas are wanted; got {text!r}") from None


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and `--set`."""
    parser.add_argument(
        "--config",
        action="append",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="take options from this TOML file, or from config.json of a run; those given here come first",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=argparse.SUPPRESS,
        metavar=PAIRS,
        help="an option by its name, over the file, such as train.lr=0.01 or reader_options.min_count=50",
    )


def read_options(words: list[str], build_parser: Callable[[list[str]], argparse.ArgumentParser]) -> argparse.Namespace:
    """Return what a command is told: by its words, else by `--set`, else by `--config`, else by default.

    Args:
        words: The command line, the command first.
        build_parser: Returns the parser that has the commands of these names.

    Raises:
        ValueError: an option that is not there or has a wrong value, here or in a file.
        DataError: a file that is not of the form wanted, or too large.
    """
    parser = build_parser(words[:1])
    own = command_parser(parser, words[0])
    _refuse_unknown(words[1:], own)
    settings = _given_early(words, own, lambda name: command_parser(build_parser([name]), name))
    own.set_defaults(**settings)
    for action in own._actions:
        if action.dest in settings:
            action.required = False
    return parser.parse_args(words)


def _given_early(
    words: list[str], own: argparse.ArgumentParser, parser_of: Callable[[str], argparse.ArgumentParser]
) -> dict[str, Any]:
    """Return what `--config` and `--set` of a command line say."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_config(early)
    try:
        given = vars(early.parse_known_args(words[1:])[0])
    except argparse.ArgumentError as error:
        own.error(str(error))
    settings: dict[str, Any] = {}
    for path in given.get("config", ()):
        merge(settings, read_config(path, words[0], own, parser_of))
    for text in given.get("set", ()):
        merge(settings, read_setting(text, words[0], own))
    return settings


def command_parser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """Return the parser of one command of `parser`."""
    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices[name]
    return found


def merge(settings: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put `more` over `settings`; of options that are pairs, pair by pair."""
    for name, value in more.items():
        if isinstance(value, list) and all(isinstance(each, dict) for each in value):
            value = [*settings.get(name, []), *value]
        settings[name] = value


def read_config(
    path: str,
    command: str,
    parser: argparse.ArgumentParser,
    parser_of: Callable[[str], argparse.ArgumentParser],
) -> dict[str, Any]:
    """Return the settings that the file `path` has for a command: option name, with `_` for `-`, to value."""
    document = _read(path)
    if document.get("format") == "mlabel.run/1":
        return _of_run(document, path, parser)
    known = _settings_of(parser)
    top = {name: value for name, value in document.items() if not _is_section(name, value, known)}
    settings = _check_all(top, parser, f"{path}: ")
    for name, section in document.items():
        if name not in top:
            checked = _check_all(section, parser if name == command else parser_of(name), f"{path}: {name}.")
            if name == command:
                merge(settings, checked)
    return settings


def read_setting(text: str, command: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the setting that `--set NAME=VALUE` says."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set wants {PAIRS}; got {text!r}")
    path = name.split(".")
    if len(path) > 1 and path[0] == command:
        path = path[1:]
    action = _find(path[0], parser, "--set ")
    place = f"--set {name}"
    if len(path) > 1 and path[0] in COMMANDS:
        raise ValueError(f"{place}: this is {parser.prog}, not mlabel {path[0]}")
    if len(path) > (2 if action.metavar == PAIRS else 1):
        raise ValueError(f"{place}: {path[0]} holds no settings of its own")
    if action.metavar == PAIRS:
        found = _json_or_text(value)
        return {action.dest: _check(action, {path[1]: found} if len(path) == 2 else found, place)}
    if value == "null":
        return {action.dest: action.default}
    return {action.dest: _check(action, _of_text(action, value), place)}


def _read(path: str) -> dict[str, Any]:
    """Return what a TOML or JSON file holds.

    Raises:
        DataError: it is not what it should be, too large, or too deep.
    """
    kind = "JSON" if Path(path).suffix == ".json" else "TOML"
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES[kind] + 1)
    if len(content) > MAX_BYTES[kind]:
        raise DataError(f"{path}: a {kind} file of options may have {MAX_BYTES[kind]:,} bytes")
    try:
        text = content.decode("utf-8-sig")
        found = _parse_json(text) if kind == "JSON" else _parse_toml(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not {kind}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: an object was wanted; got {type(found).__name__}")
    _check_depth(found, path)
    return found


def _parse_toml(text: str) -> dict[str, Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if _dots_of_name(line) > _MAX_DOTS:
            raise ValueError(f"a name of more than {_MAX_DOTS} parts (at line {number})")
    return tomllib.loads(text)


def _dots_of_name(line: str) -> int:
    """Return at least how many dots join the parts of the name that a line begins with, of a table or a value."""
    bare = _STRING.sub("", line)
    if "\\" in bare or line.lstrip().startswith("["):
        return line.count(".")
    name, equals, _ = bare.partition("=")
    return name.count(".") if equals else 0


def _parse_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(text, parse_constant=refuse)


def _check_depth(found: dict[str, Any], path: str) -> None:
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        inner = [each for value in level for each in (value.values() if isinstance(value, dict) else value)]
        level = [value for value in inner if isinstance(value, dict | list)]
    if level:
        raise DataError(f"{path}: tables and lists are more than {MAX_DEPTH} deep")


def _is_section(name: str, value: Any, known: Mapping[str, Any]) -> bool:
    # Some options are named as a command is, such as --cache; none of those is a table.
    own = known.get(_key(name))
    return isinstance(value, dict) and name in COMMANDS and (own is None or own.metavar != PAIRS)


def _of_run(document: Mapping[str, Any], path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the settings of a run that `parser` has options for."""
    recipe = document.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("train"), dict):
        raise DataError(f"{path}: this run was not begun by `mlabel train`: there is no recipe in it")
    flat = {name: value for name, value in recipe.items() if name != "train"} | recipe["train"]
    known = _settings_of(parser)
    of_recipes = {field.name for kind in (Recipe, TrainConfig) for field in dataclasses.fields(kind)}
    here = {name: value for name, value in flat.items() if name not in of_recipes or _key(name) in known}
    return _check_all(here, parser, f"{path}: recipe.")


def _settings_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest not in _OF_USE}


def _key(name: str) -> str:
    """Return the name of an option's value: `reader-options` and `reader_option` are one."""
    key = name.replace("-", "_")
    return key.removesuffix("s") if key.endswith("_options") else key


def _find(name: str, parser: argparse.ArgumentParser, place: str) -> argparse.Action:
    known = _settings_of(parser)
    action = known.get(_key(name))
    if action is None:
        near = difflib.get_close_matches(_key(name), [*known, *COMMANDS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{place}{name}: {parser.prog} has no such option{hint}; see {parser.prog} --help")
    return action


def _check_all(given: Mapping[str, Any], parser: argparse.ArgumentParser, place: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in given.items():
        action = _find(name, parser, place)
        if action.dest in settings:
            raise ValueError(f"{place}{name}: it is given twice, spelled with - and with _")
        if value is not None:  # as JSON says that nothing was chosen
            settings[action.dest] = _check(action, value, f"{place}{name}")
    return settings


def _check(action: argparse.Action, value: Any, place: str) -> Any:
    """Return a value as the option's own text would give it."""
    if action.metavar == PAIRS:
        return [_wanted(value, dict, "a table", place)]
    if action.nargs == 0:
        return _wanted(value, bool, "true or false", place)
    listed = action.nargs == "*" or isinstance(action.nargs, int)
    if listed or (isinstance(action.type, Listing) and isinstance(value, list | tuple)):
        kind = action.type.each if isinstance(action.type, Listing) else action.type
        values = [_check_one(kind, each, place) for each in _wanted(value, (list, tuple), "a list", place)]
        if isinstance(action.nargs, int) and len(values) != action.nargs:
            raise ValueError(f"{place}: {action.nargs} values are wanted; got {len(values)}")
        return values if listed else tuple(values)
    checked = _check_one(action.type, value, place)
    if action.choices is not None and checked not in action.choices:
        near = difflib.get_close_matches(str(checked), [str(each) for each in action.choices], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{place}: unknown {checked!r}; {hint}Known: {', '.join(map(str, action.choices))}")
    return checked


def _check_one(kind: Any, value: Any, place: str) -> Any:
    if kind is int:
        return _wanted(value, int, "a whole number", place)
    if kind is float:
        return float(_wanted(value, (int, float), "a number", place))
    text = _wanted(value, str, "a text", place)
    try:
        return text if kind is None else kind(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{place}: {error}") from None


def _wanted(value: Any, kinds: Any, what: str, place: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ValueError(f"{place}: {what} is wanted; got {str(value)[:80]!r}")
    return value


def _of_text(action: argparse.Action, text: str) -> Any:
    """Return the value that a text of `--set` stands for; where it is none, the text."""
    if action.nargs == 0:
        return {"true": True, "false": False}.get(text, text)
    if action.nargs == "*" or isinstance(action.nargs, int):
        return [_number_of(action.type, word.strip()) for word in text.split(",")]
    return _number_of(action.type, text)


def _number_of(kind: Any, text: str) -> Any:
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _refuse_unknown(words: list[str], parser: argparse.ArgumentParser) -> None:
    """Raise ValueError, naming the nearest, where there is an option that the parser does not have."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    for word in words[: words.index("--")] if "--" in words else words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and " " not in flag and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            parser.error(f"{parser.prog} has no {flag}" + (f"; did you mean {near[0]}?" if near else ""))
