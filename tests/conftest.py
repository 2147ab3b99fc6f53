"""What all tests share: the folder of real data, a browser, hypothesis without time limits, one thread a process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

# A test's speed depends on what else the machine does; deadlines would make tests fail at random.
settings.register_profile("mlabel", deadline=None, derandomize=True)
settings.load_profile("mlabel")
# For tools/mutation.py: one example that fails is enough, and need not be made small.
settings.register_profile(
    "mutation", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)


# Test processes side by side share the cores; threads of each would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that MLABEL_DATA names; without it the test is skipped."""
    folder = os.environ.get("MLABEL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set MLABEL_DATA to the folder of real data sets")
    return Path(folder)


@dataclass
class Visit:
    """A page open in the browser.

    Attributes:
        page: Playwright's.
        errors: Console errors, exceptions of scripts and requests that failed, as they came.
        requests: The addresses that the page asked for besides its own; those inside of it (`data:`) are none.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window, from the system's packages; where there is none the test is skipped.

    It is closed with the module, for while it runs nothing else can start an event loop.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed; see CONTRIBUTING.md")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Open a file or an address in a window of its own: `visit(path, width=390)` returns a `Visit`."""
    contexts = []

    def open_page(address: str | Path, *, width: int = 1280, height: int = 900, **settings: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        opened = Visit(context.new_page())
        url = address if isinstance(address, str) else address.resolve().as_uri()
        _listen(opened, url)
        opened.page.goto(url)
        return opened

    yield open_page
    for context in contexts:
        context.close()


def _listen(opened: Visit, url: str) -> None:
    """Note what goes wrong on a page, and what it asks for."""

    def of_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            opened.errors.append(f"{message.type}: {message.text}")

    def of_request(request: Any) -> None:
        if request.url != url and not request.url.startswith("data:"):
            opened.requests.append(request.url)

    opened.page.on("console", of_console)
    opened.page.on("pageerror", lambda error: opened.errors.append(f"exception: {error}"))
    opened.page.on("requestfailed", lambda request: opened.errors.append(f"failed: {request.url}"))
    opened.page.on("request", of_request)
