"""Benchmarks: mlabel beside its peers in one run, `python -m benchmarks [NAME ...] [--quick]`."""

from __future__ import annotations

HEADLINE = "=> "
MISSING = "missing"


def headline(what: str, ratio: float | None, peer: str) -> None:
    """Print a line of the table that `python -m benchmarks` makes.

    Args:
        what: Was measured.
        ratio: How many times the peer's time ours goes into, or its rate ours; None: the peer is not installed.
        peer: Beside which.
    """
    shown = MISSING if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
    print(f"{HEADLINE}{what} | {shown} | {peer}", flush=True)
