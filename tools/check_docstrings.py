"""Check that the docstrings of public names are complete: arguments, errors, and an example.

    python tools/check_docstrings.py

Errors are read from the source: the `raise` statements of a function and of the private functions of its module that
it calls, and the checks of other modules; not what else reaches it from there. A method that overrides one of the
library may leave its docstring, or its arguments, to the one it overrides. A class that a public function with an
example returns is shown by that example.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from types import FunctionType, ModuleType
from typing import Any

import mlabel

# What is part of a protocol of Python, or for nobody to catch.
UNSTATED = {"AttributeError", "StopIteration", "NotImplementedError", "AssertionError"}
# What a check of another module raises depends on what is checked: any error that is stated will do.
SOME = "what its checks of arguments raise"

# Public names that have no example, and why.
WITHOUT_EXAMPLE = {
    "demo": "takes half a minute; a test runs it",
    "push_to_hub": "needs a network and an account",
    "serve": "runs until it is interrupted",
}


def public_objects() -> dict[str, Any]:
    """Return the functions and classes that `__all__` of each package has, by the place they are defined at."""
    found = {}
    for name in mlabel.__all__:
        package = getattr(mlabel, name)
        if not isinstance(package, ModuleType):
            package = mlabel
        own = [key for key, held in vars(package).items() if getattr(held, "__module__", None) == package.__name__]
        for key in getattr(package, "__all__", [key for key in own if key[0] != "_"]):
            held = getattr(package, key)
            if isinstance(held, FunctionType | type):
                found[f"{held.__module__}.{held.__qualname__}"] = held
    return dict(sorted(found.items()))


def faults(objects: Mapping[str, Any], without_example: Iterable[str] = WITHOUT_EXAMPLE) -> list[str]:
    """Return a line for each thing that is not documented.

    Args:
        objects: Place to public function or class, as `public_objects` returns them.
        without_example: Names of those that have none.
    """
    shown = set(without_example) | returned_by_examples(objects.values())
    found = []
    for place, held in objects.items():
        lines = _faults_of_class(held) if isinstance(held, type) else _faults_of_callable("", held, held.__doc__)
        if held.__doc__ and not _has_example(held.__doc__) and held.__name__ not in shown:
            lines.append(": no example")
        found += [place + line for line in lines]
    return found


def returned_by_examples(objects: Iterable[Any]) -> set[str]:
    """Return the names in the return types of functions with an example, and of methods of classes with one."""
    names: set[str] = set()
    for held in objects:
        functions = list(vars(held).values()) if isinstance(held, type) else [held]
        for function in filter(None, map(_function_of, functions)):
            if _has_example(f"{held.__doc__}\n{function.__doc__}"):
                names.update(re.findall(r"\w+", str(function.__annotations__.get("return", ""))))
    return names


def _faults_of_class(held: type) -> list[str]:
    own = [base for base in held.__mro__ if _root(base) == _root(held)]
    made: Any = held.__init__
    found = _faults_of_callable("", made if _root(made) == _root(held) else None, held.__doc__)
    if held.__doc__ and (hook := vars(held).get("__post_init__")):
        found += _unstated_errors("", hook, held.__doc__)
    for key, member in vars(held).items():
        function = None if key.startswith("_") else _function_of(member)
        if function is None or not function.__qualname__.startswith(held.__qualname__):  # a field that holds a function
            continue
        above = [getattr(base, key, None) for base in own[1:]]
        inherited = " ".join(each.__doc__ for each in above if each is not None and each.__doc__)
        found += _faults_of_callable(f".{key}", function, function.__doc__ or inherited, inherited)
    return found


def _root(held: Any) -> str:
    return str(getattr(held, "__module__", "")).partition(".")[0]


def _has_example(doc: str) -> bool:
    return any(">>> " in line and "+SKIP" not in line for line in doc.splitlines())


def _function_of(member: Any) -> Callable | None:
    if isinstance(member, property | cached_property):
        return member.fget if isinstance(member, property) else member.func
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    return member if isinstance(member, FunctionType) else None


def _faults_of_callable(name: str, function: Callable | None, doc: str | None, inherited: str = "") -> list[str]:
    if not (doc or "").strip():
        return [f"{name}: no docstring"]
    if function is None:
        return []
    parameters = inspect.signature(function).parameters
    wanted = [each for each in parameters if each not in ("self", "cls", "args", "kwargs") and each[0] != "_"]
    described = _described(doc or "") | _described(inherited)
    if name:  # what a method is given may be said in its sentences
        described |= set(re.findall(r"`(\w+)", f"{doc} {inherited}"))
    missing = [each for each in wanted if each not in described]
    found = [f"{name}: says nothing of {', '.join(missing)}"] if missing else []
    return found + _unstated_errors(name, function, f"{doc}\n{inherited}")


def _section(doc: str, title: str) -> str:
    lines = re.findall(rf"^ *{title}:\n((?: +\S.*\n|\n)+)", doc + "\n", re.MULTILINE)
    return "".join(lines)


def _described(doc: str) -> set[str]:
    text = "".join(_section(inspect.cleandoc(doc), title) for title in ("Args", "Attributes"))
    heads = re.findall(r"^ {4}(\*{0,2}\w[\w, *]*?)(?: \([^)]*\))?:", text, re.MULTILINE)
    return {each.strip(" *") for head in heads for each in head.split(",")}


def _unstated_errors(name: str, function: Callable, doc: str) -> list[str]:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or function.__code__.co_filename == "<string>":  # made by `dataclass`
        return []
    stated = set(re.findall(r"^ +([\w, ]+):", _section(doc, "Raises"), re.MULTILINE))
    stated = {each.strip() for names in stated for each in names.split(",")}
    missing = sorted(errors_of(function) - UNSTATED - stated - ({SOME} if stated else set()))
    return [f"{name}: does not say that it raises {', '.join(missing)}"] if missing else []


@cache
def errors_of(function: FunctionType) -> frozenset[str]:
    """Return the names of the errors that a function and the private functions of its module that it calls raise."""
    names = vars(sys.modules[function.__module__])
    found: set[str] = set()
    seen: set[FunctionType] = set()
    waiting = [function]
    while waiting:
        one = waiting.pop()
        seen.add(one)
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        found |= _raised(tree)
        called = [names[name] for name in _called(tree) if isinstance(names.get(name), FunctionType)]
        if any(_is_check(each) and each.__module__ != function.__module__ and errors_of(each) for each in called):
            found.add(SOME)
        private = [inspect.unwrap(each) for each in called if each.__name__.startswith("_")]
        waiting += [each for each in private if each.__module__ == function.__module__ and each not in seen]
    return frozenset(found)


def _is_check(function: FunctionType) -> bool:
    """Return whether a function belongs to a private module, as `mlabel._checks` is, or is named as checks are."""
    private = function.__module__.rpartition(".")[2].startswith("_")
    return private or function.__name__.startswith(("check_", "refuse_"))


def _raised(tree: ast.AST) -> set[str]:
    held = [node.exc for node in _uncaught(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    heads = [each.func if isinstance(each, ast.Call) else each for each in held]
    return {each.id for each in heads if isinstance(each, ast.Name) and each.id[0].isupper()}


def _uncaught(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, without the bodies of `try` whose errors become others: what they raise is caught there."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Try) and child.handlers:
            for part in (*child.handlers, *child.orelse, *child.finalbody):
                yield from _uncaught(part)
        else:
            yield from _uncaught(child)


def _called(tree: ast.AST) -> Iterator[str]:
    for node in _uncaught(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def main() -> int:
    """Say what is not documented, and return 1 where something is not."""
    found = faults(public_objects())
    print("\n".join(found) or "every public name says what it takes and raises, and has an example")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
