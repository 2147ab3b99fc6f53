"""The line that a person watches while a training runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mlabel.training.state import Event, TrainState

# How much of the speed that is shown is that of the last step.
_NEWEST = 0.1
_FORMAT = "{desc} {bar} {n_fmt}/{total_fmt} steps, {remaining} left{postfix}"


class ProgressLine:
    """A line on stderr with epoch, loss, monitored metric, images a second, memory and time left.

    Above it stay a line on what is trained and one of each evaluation.

    Example:
        >>> line = ProgressLine()
        >>> line.close()  # nothing was shown
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._trained = -1
        self._rate = 0.0
        self._metric = ""

    def show(self, event: Event) -> None:
        """Show what `event` says."""
        if self._bar is None:
            total = event.state.config.epochs * event.state.steps_per_epoch
            self._bar = tqdm(total=total, initial=max(0, event.step - 1), bar_format=_FORMAT)
        if event.trained != self._trained:
            self._bar.write(describe(event.state), file=sys.stderr)
            self._trained = event.trained
        if event.kind == "step":
            self._show_step(event)
        elif event.kind == "eval":
            self._show_evaluation(event)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()

    def _show_step(self, event: Event) -> None:
        rate = event.images / event.seconds if event.seconds > 0 else 0.0
        self._rate = rate if not self._rate else (1 - _NEWEST) * self._rate + _NEWEST * rate
        self._bar.set_description_str(f"epoch {event.epoch + 1}/{event.state.config.epochs}", refresh=False)
        shown = f"loss {event.loss:.4f}{self._metric}, {self._rate:,.0f} images/s, {memory(event.state.device):.1f} GB"
        if event.state.skipped:
            shown += f", {event.state.skipped} skipped"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(1)

    def _show_evaluation(self, event: Event) -> None:
        monitor = event.state.config.monitor
        if f"val_{monitor}" in event.metrics:
            self._metric = f", {monitor} {event.metrics[f'val_{monitor}']:.4f}"
        shown = {name: value for name, value in event.metrics.items() if isinstance(value, float) and name != "lr"}
        self._bar.write(
            f"epoch {event.metrics['epoch']} step {event.step}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in shown.items()),
            file=sys.stderr,
        )


def describe(state: TrainState) -> str:
    """Return in a line what is trained, in which numbers, and where."""
    every = sum(parameter.numel() for parameter in state.model.parameters())
    chosen = " (auto)" if state.config.precision == "auto" else ""
    compiled = "" if state.network is None else ", compiled"
    return (
        f"training {state.trained:,} of {every:,} parameters in {state.precision}{chosen}, "
        f"{state.config.memory_format}{compiled}, on {state.device}"
    )


def memory(device: torch.device) -> float:
    """Return the memory in use in gigabytes: what torch holds of a GPU's, or what this process has of the machine's."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / 1e9
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    import resource  # where there is no such file: the most that was ever in use

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e9 if sys.platform == "darwin" else 1e6)
