"""What the README and the examples show is what happens."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import GenericAlias

import pytest

import mlabel
from mlabel._checks import check_positive

ROOT = Path(__file__).parents[1]


def test_the_readmes_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.py").write_text(blocks[0], encoding="utf-8")
    runpy.run_path("readme.py")
    printed = capsys.readouterr().out
    macro_f1 = re.search(r"^macro_f1 +(\d\.\d+)$", printed, re.MULTILINE)
    assert macro_f1 is not None
    assert float(macro_f1[1]) > 0.8
    assert printed.count("Prediction(path=") == 3
    assert (tmp_path / "runs" / "digits" / "bundle" / "model.safetensors").exists()


@pytest.mark.slow  # `.ci/run` runs every example
def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(tmp_path / "run")])
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    assert re.search(r"^macro_f1( +\d\.\d+){2}$", capsys.readouterr().out, re.MULTILINE)


def test_every_public_name_is_there_and_documented() -> None:
    for name in mlabel.__all__:
        held = getattr(mlabel, name)
        assert name == "__version__" or held.__doc__, name
    assert set(mlabel.__all__) == set(dir(mlabel))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = mlabel.fitt


def test_what_packages_make_public_is_documented() -> None:
    site = runpy.run_path(str(ROOT / "tools" / "check_site.py"))
    names = site["public_names"]()
    assert len(names) > 300
    for name in names:
        package, _, last = name.rpartition(".")
        held = getattr(sys.modules[package], last)
        assert not callable(held) or held.__doc__ or isinstance(held, GenericAlias), name


def test_docstrings_of_public_names_are_complete() -> None:
    check = runpy.run_path(str(ROOT / "tools" / "check_docstrings.py"))
    objects = check["public_objects"]()
    assert len(objects) > 300
    assert check["faults"](objects) == []
    assert set(check["WITHOUT_EXAMPLE"]) <= {held.__name__ for held in objects.values()}


def _bare(width):
    return width


def _silent(width):
    """Return it."""
    if width < 0:
        raise KeyError(width)
    return _refuse(width)


def _refuse(width):
    try:
        raise OSError
    except OSError as error:
        raise RuntimeError(width) from error


def _checked(width) -> Counter:
    """Return it.

    Args:
        width: A number.

    Example:
        >>> 1 + 1
        2
    """
    check_positive(width, "width")
    return Counter()


class _Careless:
    """Something.

    Raises:
        ValueError: it is bad.
    """

    def __init__(self, width, **kwargs):
        check_positive(width, "width")

    def grow(self, by, *, times):
        """Return it `by` more.

        Raises:
            KeyError, ValueError: never.
        """
        raise KeyError(by)

    @property
    def size(self):
        return 3


class _Careful(_Careless):
    """Something else.

    Args:
        width: A number.

    Example:
        >>> 1 + 1
        2
    """

    def __init__(self, width):
        self.width = width

    def grow(self, by, *, times):
        """Return it so many `times` more."""
        raise KeyError(by)


def test_what_a_docstring_lacks_is_found() -> None:
    check = runpy.run_path(str(ROOT / "tools" / "check_docstrings.py"))

    def of(held):
        return check["faults"]({"x": held})

    some = check["SOME"]
    assert of(_bare) == ["x: no docstring"]
    assert of(_silent) == [
        "x: says nothing of width",
        "x: does not say that it raises KeyError, RuntimeError",
        "x: no example",
    ]
    _silent.__doc__ += "\n    Example:\n        >>> _silent(1)  # doctest: +SKIP"
    assert of(_silent)[-1] == "x: no example"
    assert of(_checked) == [f"x: does not say that it raises {some}"]
    assert of(_Careless) == [
        "x: says nothing of width",
        "x.grow: says nothing of times",
        "x.size: no docstring",
        "x: no example",
    ]
    assert of(_Careful) == []
    assert check["faults"]({"x": _Careless}, ["_Careless"])[-1] == "x.size: no docstring"
    assert check["returned_by_examples"]([_checked, _silent]) == {"Counter"}


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    site = runpy.run_path(str(ROOT / "tools" / "check_site.py"))
    (tmp_path / "a.html").write_text('<p id="here">&quot; <a href="#here">x</a> <a href="b/c.html#x&amp;y">y</a></p>')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.html").write_text(
        '<a id="x&amp;y" href="../a.html#here">z</a> <img src="https://example.org/p.png">'
    )
    assert site["broken_links"](tmp_path) == []
    (tmp_path / "d.html").write_text('<a href="e.html">x</a> <a href="b/c.html#gone">y</a> <img src="p.png">')
    assert site["broken_links"](tmp_path) == [
        "d.html: no place b/c.html#gone",
        "d.html: no file e.html",
        "d.html: no file p.png",
    ]


def test_the_gallery_has_a_small_picture_of_each_example() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"../examples/{path.name}" in page
        assert f"_static/examples/{path.stem}.png" in page
        assert (ROOT / "docs" / "_static" / "examples" / f"{path.stem}.png").stat().st_size < 60_000


def test_every_package_has_its_page_of_the_documentation() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    packages = {
        path.stem for path in (ROOT / "src" / "mlabel").iterdir() if not path.name.startswith(("_", "py", "cli"))
    }
    assert pages == packages


@pytest.mark.slow
def test_the_demo_meets_its_promise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlabel", "demo", "--run", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    line = re.search(r"^macro_f1 +(\S+) +(\S+) +(\S+)$", done.stdout, re.MULTILINE)
    assert line is not None
    prior, _, calibrated = map(float, line.groups())
    assert prior < 0.2
    assert calibrated > 0.93
    assert re.search(r"^next: mlabel predict --bundle ", done.stdout, re.MULTILINE)
    for name in ("history.csv", "best", "bundle/config.json", "report/index.html", "report/examples.png"):
        assert (tmp_path / "demo" / name).exists()
