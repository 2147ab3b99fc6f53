"""Sphinx configuration: the prose is MyST Markdown, the API pages come from the docstrings."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from types import GenericAlias
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import mlabel

project = "mlabel"
author = "the mlabel authors"
copyright = "2026, the mlabel authors"
version = release = mlabel.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "mlabel"
html_static_path = ["_static"]
html_css_files = ["mlabel.css"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Docstrings are written for readers of the source too: a single backtick is code.
default_role = "code"
doctest_global_setup = "import numpy as np, torch, mlabel"
# The examples of docstrings run with the tests, in the namespace of their module.
doctest_test_doctest_blocks = ""


class Constants(SphinxDirective):
    """Write the constants of a package's `__all__`, which autodoc leaves out: `constants:: mlabel.data`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return an entry for each constant, with what it holds."""
        package = importlib.import_module(self.arguments[0])
        lines = []
        for name in package.__all__:
            held = getattr(package, name)
            if name.isupper() or isinstance(held, GenericAlias):
                lines += [f".. py:data:: {name}", f"   :module: {package.__name__}", "", f"   {_holding(held)}", ""]
        return self.parse_text_to_nodes("\n".join(lines)) if lines else []


def _holding(held: Any) -> str:
    if isinstance(held, Mapping) and all(isinstance(each, str) for each in held.values()):
        return "; ".join(f"``{name}``: {meaning}" for name, meaning in held.items())
    if isinstance(held, str | float | int | GenericAlias):
        return f"``{held!r}``"
    if isinstance(held, Iterable):
        return ", ".join(f"``{name}``" for name in held)
    return f"a ``{type(held).__name__}``"


def _module_of_alias(app: Sphinx, module: str, name: str) -> str | None:
    """Return where an alias of a type stands; viewcode would take it to be of the type's module."""
    return module if isinstance(getattr(importlib.import_module(module), name, None), GenericAlias) else None


def setup(app: Sphinx) -> None:
    """Add what this documentation needs of its own."""
    app.add_directive("constants", Constants)
    app.connect("viewcode-follow-imported", _module_of_alias)
