"""Sphinx configuration: the prose is MyST Markdown, the API pages come from the docstrings."""

from __future__ import annotations

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
