"""The table of what was tried, what survived and what was lost, printed after the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_PROPERTY = "faults tried"


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[str, int, int, int], None]:
    """Return a function that enters a line into the table: what was done, how often, survivals and losses."""

    def enter(what: str, tried: int, survived: int, lost: int) -> None:
        record_property(_PROPERTY, (what, tried, survived, lost))

    return enter


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    lines = [value for report in reports for name, value in report.user_properties if name == _PROPERTY]
    if lines:
        terminalreporter.section("what training survived")
        terminalreporter.write_line(f"{'':44} {'tried':>6} {'survived':>9} {'lost':>5}")
    for what, tried, survived, lost in lines:
        terminalreporter.write_line(f"{what:44} {tried:6} {survived:9} {lost:5}")
