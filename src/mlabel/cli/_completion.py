"""Scripts by which shells complete commands, options and their values."""

from __future__ import annotations

import argparse

from mlabel._checks import resolve

SHELLS = ("bash", "zsh", "fish", "tcsh")
# Metavars of options and arguments that take a path.
_FILES = ("FILE", "IMAGE", "FILE_OR_LIST", "FILE_OR_FOLDER", "IMAGE_OR_FOLDER", "FILE.jsonl", "FILE.png")
_FOLDERS = ("FOLDER",)
_PATHS = frozenset({"data", "cache", "weights", "resume"})  # settings of a recipe that are paths


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a script for `shell` that completes what `parser` takes; it runs without Python.

    Raises:
        ValueError: another shell.
        ImportError: shtab is not installed.
    """
    resolve(shell, dict.fromkeys(SHELLS), "shell")
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install 'mlabel[completion]'") from error
    _mark_paths(parser, shtab.FILE, shtab.DIRECTORY)
    script: str = shtab.complete(parser, shell)
    return script


def _mark_paths(parser: argparse.ArgumentParser, file: object, folder: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _mark_paths(each, file, folder)
        elif action.metavar in _FOLDERS:
            action.complete = folder  # type: ignore[attr-defined]
        elif action.metavar in _FILES or action.dest in _PATHS:
            action.complete = file  # type: ignore[attr-defined]
