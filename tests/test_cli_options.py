"""The options of all commands: one house of names, configuration files and `--set`, and how errors are told."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlabel
from mlabel.cli import EXIT_CODES, build_parser, main
from mlabel.cli._commands import COMMANDS
from mlabel.cli._completion import SHELLS, completion
from mlabel.cli._config import MAX_BYTES, MAX_DEPTH, command_parser, read_options
from mlabel.cli._options import _CHOICES
from mlabel.cli.runs import _recipe
from mlabel.recipes import Recipe
from mlabel.training import TrainConfig

BASE = ["--reader", "csv", "--data", "a.csv", "--run", "r"]


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    whole = build_parser()
    return {name: command_parser(whole, name) for name in COMMANDS}


def told(*words: str) -> argparse.Namespace:
    return read_options(list(words), build_parser)


def toml(value: Any) -> str:
    """Return a value as TOML has it within a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(name)} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def document(recipe: Recipe) -> str:
    """Return a recipe as a TOML file; what is not chosen is left out."""
    fields = recipe.to_dict()
    train = fields.pop("train")
    lines = [f"{name} = {toml(value)}" for name, value in fields.items() if value is not None]
    return "\n".join([*lines, "[train]", *(f"{n} = {toml(v)}" for n, v in train.items() if v is not None)])


# One house.


def test_the_same_name_means_the_same_everywhere(parsers: dict[str, argparse.ArgumentParser]) -> None:
    kinds = defaultdict(set)
    for parser in parsers.values():
        for action in parser._actions:
            for flag in action.option_strings:
                kinds[flag].add((repr(action.type or str).split(" at ")[0], action.nargs, action.dest))
    assert {flag: found for flag, found in kinds.items() if len(found) > 1} == {}
    # The name of a value is the name of its option, so that a file has one name for it.
    for flag, found in kinds.items():
        if flag not in ("-h", "--run-dir"):
            assert {dest for _, _, dest in found} == {flag[2:].replace("-", "_")}


@pytest.mark.parametrize(
    ("flag", "others"),
    [
        ("--to", ("--output", "--out", "--out-dir", "--output-dir", "--target")),
        ("--num-workers", ("--workers", "--jobs", "--processes")),
        ("--format", ("--json", "--csv")),
        ("--min-score", ("--above", "--floor")),
        ("--limit", ("--num-images", "--max-images")),
        ("--seed", ("--random-state",)),
        ("--device", ("--gpu", "--cuda")),
        ("--duplicates", ("--distance",)),
        ("--batch-size", ("--batch",)),
    ],
)
def test_the_same_meaning_has_the_same_name(
    flag: str, others: tuple[str, ...], parsers: dict[str, argparse.ArgumentParser]
) -> None:
    flags = {each for parser in parsers.values() for action in parser._actions for each in action.option_strings}
    assert flag in flags
    assert flags.isdisjoint(others)


def test_names_are_words_with_hyphens_and_every_option_has_help(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, parser in parsers.items():
        for action in parser._actions:
            assert action.help, (name, action.dest)
            assert all(flag == flag.lower() and "_" not in flag for flag in action.option_strings)
        flags = set(parser._option_string_actions)
        assert flags >= {"--help", "--verbose", "--debug", "--config", "--set"}
        assert ("--on-bad" in flags) == ("--max-bad" in flags)
        assert "--run-dir" in flags or "--run" not in flags


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert f"example: mlabel {name} " in printed
    assert "(default: None)" not in printed
    words = printed.split("example: ")[1].split()
    flags = {word for word in words if word.startswith("--")}
    assert flags <= set(command_parser(build_parser(), name)._option_string_actions)


def test_the_first_page_says_what_the_commands_say(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, (_, line) in COMMANDS.items():
        assert (parsers[name].description or "").splitlines()[0] == line


def test_help_and_version_come_without_torch() -> None:
    code = (
        "import sys; from mlabel.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    for word, wanted in (("--help", "calibrate"), ("--version", f"mlabel {mlabel.__version__}\n")):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
        assert wanted in done.stdout


# Exit codes and errors.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        ([], "a command is wanted; see mlabel --help"),
        (["--debug", "train", *BASE], "options come after the command: mlabel train ..."),
        (["train", "--epoch", "3"], "mlabel train has no --epoch; did you mean --epochs?; see mlabel train --help"),
        (["train", "--lr=x", *BASE], "--lr: invalid float value: 'x'"),
        (["train", "--progressive-resize=x", *BASE], "numbers separated by commas are wanted; got 'x'"),
        (["evaluate"], "the following arguments are required: --run"),
        (["search", "--index", "i", "a", "b"], "unrecognized arguments: b"),
        (["--print-completion", "csh"], "unknown shell 'csh'"),
    ],
)
def test_wrong_use_is_one_line_and_2(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    words = [word for word in words if word != "--debug"] if "--debug" in words[1:] else words
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert lines[-1].startswith("mlabel: error: ")
    assert message in lines[-1]
    assert len(lines) == 1 or words[0] == "--debug"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("a\n  b\n"), 2, "mlabel: error: a; b\n"),
        (MemoryError(), 2, "mlabel: error: MemoryError\n"),
        (KeyError("x"), 70, "mlabel: unforeseen error: KeyError: 'x'; a defect of mlabel: --debug shows where\n"),
        (BrokenPipeError(), 141, ""),
        (KeyboardInterrupt(), 130, "mlabel: interrupted\n"),
    ],
)
def test_how_a_command_ends(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mlabel.inference.SearchIndex.__init__", fail)
    assert main(["search", "--index", "i", "cat"]) == code
    assert code in EXIT_CODES
    assert capfd.readouterr().err == said
    if code in (2, 70):
        main(["search", "--index", "i", "cat", "--debug"])
        assert "Traceback" in capfd.readouterr().err


def test_the_page_of_the_command_line_lists_the_exit_codes_and_commands() -> None:
    page = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in page
    for name in COMMANDS:
        assert f"| `mlabel {name}` |" in page


# Configuration files.

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0,"), min_size=1, max_size=8).filter(str.strip)
WORDS = NAMES.filter(lambda text: text.isprintable())
VALUES = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | NAMES
SHARES = st.floats(0, 1, exclude_min=True)
COUNTS = st.integers(2, 10**6)
SPECIAL = {
    "progressive_resize": st.none() | st.lists(COUNTS, min_size=1, max_size=3).map(tuple),
    "rho_min": st.none(),
    "unfreeze_epoch": st.none(),
    "shard": st.just("none"),
    "ema": st.none() | st.floats(0, 1, exclude_max=True),
}
RECIPES: dict[str, Any] = {
    "reader": st.just("csv"),
    "data": NAMES,
    "reader_options": st.dictionaries(
        st.sampled_from(["tags_column", "separator", "exclusive", "partition_column"]), VALUES | st.lists(VALUES)
    ),
    "labels": st.none() | st.lists(NAMES, min_size=1, max_size=4),
    "split": st.sampled_from([None, (0.8, 0.2), (0.64, 0.16, 0.2)]),
    "logit_adjustment": st.just(0.0),  # of which and label smoothing there may only be one
    "hold_out": st.none(),  # of which there may only be one with `split`
    "head_options": st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES), max_size=2),
    "loss_options": st.dictionaries(NAMES, VALUES, max_size=2),
    "objective": st.just("f1"),
    "objective_options": st.just({}),
    "duplicates": st.none() | st.integers(0, 16),
    "scope": st.sampled_from([None, "label", "group", "global"]),
}


def _strategy(field: dataclasses.Field) -> st.SearchStrategy:
    if field.name in _CHOICES:
        values: st.SearchStrategy = st.sampled_from(sorted(_CHOICES[field.name]))
    else:
        values = {"int": COUNTS, "float": SHARES, "str": NAMES}[str(field.type).removesuffix(" | None")]
    return values | st.none() if str(field.type).endswith("None") else values


TRAININGS = st.builds(
    TrainConfig,
    **{f.name: SPECIAL[f.name] if f.name in SPECIAL else _strategy(f) for f in dataclasses.fields(TrainConfig)},
)
ALL = st.builds(
    Recipe,
    **{
        f.name: RECIPES[f.name] if f.name in RECIPES else _strategy(f)
        for f in dataclasses.fields(Recipe)
        if f.name != "train"
    },
    train=TRAININGS,
)


@settings(max_examples=40, deadline=None)
@given(recipe=ALL)
def test_a_recipe_in_a_file_is_that_recipe(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("config")
    (folder / "run.toml").write_text(document(recipe), encoding="utf-8")
    (folder / "config.json").write_text(
        json.dumps({"format": "mlabel.run/1", "recipe": recipe.to_dict()}), encoding="utf-8"
    )
    for name in ("run.toml", "config.json"):
        assert _recipe(told("train", "--config", str(folder / name), "--run", "r")) == recipe


@settings(max_examples=30, deadline=None)
@given(train=TRAININGS)
def test_settings_one_by_one_are_those_settings(train: TrainConfig) -> None:
    words = []
    for number, (name, value) in enumerate(train.to_dict().items()):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else "null" if value is None else str(value)
        words += ["--set", f"{'train.' if number % 2 else ''}{name}={text}"]
    assert _recipe(told("train", *BASE, *words)).train == train


def test_words_come_before_set_and_set_before_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("batch-size = 1\nlr = 1\n[train]\nepochs = 1\nseed = 1\nmomentum = 1.0\n")
    second.write_text("lr = 0.5\nepochs = 2\n[train]\nseed = 2")
    files = ["--config", str(first), f"--config={second}"]
    options = told("train", *BASE, *files, "--set", "train.lr=0.25", "--set", "seed=3", "--seed", "4")
    assert (options.batch_size, options.momentum, options.epochs, options.lr, options.seed) == (1, 1.0, 2, 0.25, 4)
    assert isinstance(options.lr, float)
    assert told("train", *BASE, *files, "--set", "batch_size=null").batch_size == TrainConfig.batch_size


def test_pairs_of_words_come_over_those_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'reader_options = {tags_column = "a", separator = "b"}\n[loss_options]\ngamma_neg = 1\nclip = 1.5\n'
    )
    words = ["--set", "reader-options.exclusive=[1]", "--reader-option", "separator=c", "--set", "loss_options.clip=2"]
    recipe = _recipe(told("train", *BASE, "--config", str(path), *words))
    assert recipe.reader_options == {"tags_column": "a", "separator": "c", "exclusive": [1]}
    assert recipe.loss_options == {"gamma_neg": 1, "clip": 2}


def test_one_file_serves_many_commands(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'reader = "csv"\ndata = "a.csv"\nlabels = ["a, b", "c"]\n'
        '[train]\nrun = "r"\nlr = 0.5\n[doctor]\nno-images = true\nexpected_size = [3, 4]\nseed = 5\n'
        '[predict]\nimages = ["x", "y"]\nworker = "1/3"\n[evaluate]\ninclude = ["macro_mcc"]\nintervals = 7\n'
    )
    train, doctor = told("train", "--config", str(path)), told("doctor", "--config", str(path))
    assert (train.data, train.labels, train.lr, train.run) == ("a.csv", ("a, b", "c"), 0.5, "r")
    assert _recipe(train).labels == ("a, b", "c")
    assert (doctor.no_images, doctor.expected_size, doctor.seed) == (True, [3, 4], 5)
    (tmp_path / "b.toml").write_text(path.read_text().partition("[train]")[2].replace('run = "r"\nlr = 0.5', "[train]"))
    both = ["--config", str(tmp_path / "b.toml")]
    predict = told("predict", *both, "--bundle", "b")
    assert (predict.images, predict.worker) == (["x", "y"], (1, 3))
    assert told("predict", *both, "--bundle", "b", "z").images == ["z"]
    evaluate = told("evaluate", *both, "--run", "r")
    assert (evaluate.include, evaluate.intervals) == (("macro_mcc",), 7)
    assert told("doctor", *BASE[:4], "--set", "no_images=true", "--set", "expected_size=5,6").expected_size == [5, 6]


def test_other_commands_take_from_a_run_what_they_know(tmp_path: Path) -> None:
    recipe = Recipe("csv", "a.csv", image_size=64, limit=9, train=TrainConfig(augment="flip", epochs=3))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"format": "mlabel.run/1", "recipe": recipe.to_dict(), "model": {}}))
    cache = told("cache", "--config", str(path), "--to", "c")
    assert (cache.reader, cache.data, cache.image_size, cache.augment, cache.limit) == ("csv", "a.csv", 64, "flip", 9)
    assert told("doctor", "--config", str(path)).show_epochs == "0-7"
    path.write_text(json.dumps({"format": "mlabel.run/1"}))
    with pytest.raises(mlabel.DataError, match="this run was not begun by `mlabel train`"):
        told("cache", "--config", str(path))
    path.write_text(json.dumps({"format": "mlabel.run/1", "recipe": {**recipe.to_dict(), "lrr": 1}}))
    with pytest.raises(
        ValueError, match=r"config\.json: recipe\.lrr: mlabel train has no such option; did you mean 'lr'"
    ):
        told("train", "--config", str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "batchsize: mlabel train has no such option; did you mean 'batch_size'?"),
        ("[train]\nlrr = 3", "train.lrr: mlabel train has no such option; did you mean 'lr'?"),
        ("[cache]\nimagesize = 3", "cache.imagesize: mlabel cache has no such option; did you mean 'image_size'?"),
        ("[trian]\nlr = 3", "trian: mlabel train has no such option; did you mean 'train'"),
        ("[train.inner]\nlr = 3", "train.inner: mlabel train has no such option"),
        ("batch-size = 3\nbatch_size = 3", "batch_size: it is given twice"),
        ("epochs = 3.5", "epochs: a whole number is wanted; got '3.5'"),
        ("epochs = true", "epochs: a whole number is wanted; got 'True'"),
        ('lr = "0.1"', "lr: a number is wanted; got '0.1'"),
        ("lr = 1979-05-27", "lr: a number is wanted; got '1979-05-27'"),
        ("backbone = 3", "backbone: a text is wanted; got '3'"),
        ("labels = 3", "labels: a text is wanted"),
        ("labels = [3]", "labels: a text is wanted; got '3'"),
        ("progressive_resize = [64, 0.5]", "progressive_resize: a whole number is wanted; got '0.5'"),
        ("debug = true", "debug: mlabel train has no such option"),
        ('config = "b.toml"', "config: mlabel train has no such option"),
        ('command = "b"', "command: mlabel train has no such option"),
        ("reader_options = 3", "reader_options: a table is wanted"),
        ("allow_changed_data = 1", "allow_changed_data: true or false is wanted; got '1'"),
        ('optimizer = "adamm"', "optimizer: unknown 'adamm'; did you mean 'adam'? Known: adam, adamw"),
        ("[doctor]\nexpected_size = [1]", "doctor.expected_size: 2 values are wanted; got 1"),
        ("lr = ", "not TOML: Invalid value (at "),
    ],
)
def test_a_file_is_checked_with_its_place(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(text)
    assert main(["train", *BASE, "--config", "run.toml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mlabel: error: run.toml: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "--set wants NAME=VALUE; got 'lr'"),
        ("lrr=1", "--set lrr: mlabel train has no such option; did you mean 'lr'?"),
        ("lr=fast", "--set lr: a number is wanted; got 'fast'"),
        ("epochs=1.5", "--set epochs: a whole number is wanted; got '1.5'"),
        ("lr.x=1", "--set lr.x: lr holds no settings of its own"),
        ("cache.to=1", "--set cache.to: this is mlabel train, not mlabel cache"),
        ("allow_changed_data=yes", "--set allow_changed_data: true or false is wanted; got 'yes'"),
        ("reader_options=3", "--set reader_options: a table is wanted; got '3'"),
        ("debug=true", "--set debug: mlabel train has no such option"),
    ],
)
def test_set_is_checked_as_the_option_is(text: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *BASE, "--set", text]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"#" * (MAX_BYTES["TOML"] + 1), "a TOML file of options may have 65,536 bytes"),
        ("a.json", b" " * (MAX_BYTES["JSON"] + 1), "a JSON file of options may have 4,194,304 bytes"),
        ("a.toml", b"a = " + b"[" * 60_000, "not TOML"),
        ("a.toml", b"a = " + b"{a = " * 12_000, "not TOML"),
        ("a.toml", b"reader_options = " + b"{a = " * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, "more than 8 deep"),
        (
            "a.toml",
            b"[" + b"a." * 15_000 + b"a]\n" + b"".join(b"b%d=1\n" % n for n in range(3000)),
            "64 parts (at line 1)",
        ),
        ("a.toml", b"[" + b"a." * 60 + b"a]\n" + b"".join(b"b%d=1\n" % n for n in range(7000)), "more than 8 deep"),
        ("a.toml", b"a." * 32_000 + b"a = 1", "a name of more than 64 parts (at line 1)"),
        ("a.toml", b'\n"=" . ' + b"a." * 32_000 + b"a = 1", "a name of more than 64 parts (at line 2)"),
        ("a.toml", b'"\\\\".' + b"a." * 32_000 + b'a = ""', "a name of more than 64 parts (at line 1)"),
        ("a.toml", b"a." * 60 + b"a = 1", "more than 8 deep"),
        ("a.toml", b"x = {" + b"a." * 32_000 + b"a = 1}", "more than 8 deep"),
        ("a.toml", b"lr = [" + b"1.5," * 16_000 + b"]", "lr: a number is wanted"),
        ("a.toml", b"lr = " + b"9" * 5000, "not TOML"),
        ("a.toml", b"\xff\xfe", "not TOML"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b"[]", "an object was wanted; got list"),
        ("a.json", b'{"lr": ' + b"9" * 5000 + b"}", "not JSON"),
        ("a.json", b'{"lr": NaN}', "not JSON"),
    ],
)
def test_a_strangers_file_costs_nothing(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert main(["train", *BASE, "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert (said.count("\n"), len(said) < 1000) == (1, True)


def test_reading_a_file_opens_nothing_else(tmp_path: Path) -> None:
    """Code, processes and other files: what a file could ask for, an audit hook would see."""
    evil = {
        "data": "/etc/passwd",
        "reader_options": {"tags_column": "__import__('os').system('touch x')", "separator": "$(touch x)"},
        "loss_options": {"__class__": "{0.__class__}", "clip": "!!python/object"},
        "cache": "file:///etc/passwd",
        "weights": "x.pth",
    }
    path = tmp_path / "evil.toml"
    path.write_text("\n".join(f"{name} = {toml(value)}" for name, value in evil.items()))
    seen: list[tuple[str, Any]] = []
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in ("open", "exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect"):
            seen.append((event, arguments[0]))

    told("train", *BASE, "--config", str(path))  # what is imported and compiled once
    sys.addaudithook(hook)
    options = told("train", "--reader", "csv", "--run", "r", "--config", str(path))
    active = False
    assert {argument for _, argument in seen} == {str(path)}
    assert options.data == evil["data"]


# Completion.


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: completion(build_parser(), shell) for shell in SHELLS}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["mlabel", ""], {*COMMANDS}),
        (["mlabel", "tr"], {"train"}),
        (["mlabel", "train", "--optim"], {"--optimizer"}),
        (["mlabel", "train", "--optimizer", ""], {"adam", "adamw", "sgd", "adamax", "adadelta"}),
        (["mlabel", "predict", "--run"], set()),
        (["mlabel", "search", "--bundle", "fold"], {"folder"}),
        (["mlabel", "predict", "--list", "f"], {"folder", "file.txt"}),
    ],
)
def test_bash_completes(words: list[str], wanted: set[str], scripts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / "script").write_text(scripts["bash"])
    line = "source ./script; COMP_WORDS=({}); COMP_CWORD={}; _shtab_mlabel; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    line = line.format(" ".join(map(shlex.quote, words)), len(words) - 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(done.stdout.split()) - {"-h", "--help", "--version", "--print-completion"} == wanted


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_name_every_command_and_option(
    shell: str, scripts: dict[str, str], parsers: dict[str, argparse.ArgumentParser]
) -> None:
    flags = {flag[2:] for parser in parsers.values() for flag in parser._option_string_actions if flag.startswith("--")}
    assert {name for name in {*COMMANDS, *flags} if name not in scripts[shell]} == set()
    if shell in ("bash", "zsh", "fish", "tcsh") and shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=scripts[shell], text=True, check=True)


def test_the_script_is_printed(scripts: dict[str, str], capsys: pytest.CaptureFixture) -> None:
    assert main(["--print-completion", "bash"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == scripts["bash"].rstrip("\n")


def test_without_its_package_completion_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == 2
    assert "pip install 'mlabel[completion]'" in capsys.readouterr().err
