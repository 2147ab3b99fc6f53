"""The maps that a calibration is made of: each takes logits to logits, label by label or over an exclusive group.

A block holds labels as rows, (w, n) float64: the columns `span` of the matrix, either of any-of labels or all of one
exclusive group. Every map of any-of labels keeps the order of a label's logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import log_expit

from mlabel.decisions._loss_links import EXCLUSIVE_LINKS, LINKS, check_ranges

# What stands for an infinite logit where it is multiplied.
_FAR = 1e30


class LogitMap(Protocol):
    """A step of a calibration."""

    kind: str

    def of_block(self, x: np.ndarray, span: slice, exclusive: bool) -> np.ndarray:
        """Return the logits (w, n) that a block's become."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the map as plain lists and texts for JSON."""
        ...


@dataclass(frozen=True, eq=False)
class SlopeMap:
    """low log p - high log(1 - p) + offset, with p = sigmoid(x): low x + offset where the two slopes are equal.

    Attributes:
        low: (L,) the slope at very low logits, 0 or more.
        high: (L,) the slope at very high logits; that of `low` for the classes of exclusive groups.
        offset: (L,).
    """

    low: np.ndarray
    high: np.ndarray
    offset: np.ndarray
    kind = "slopes"

    def __post_init__(self) -> None:
        for name in ("low", "high", "offset"):
            held = np.array(getattr(self, name), dtype=np.float64)
            if held.ndim != 1 or held.shape != self.low.shape or not np.isfinite(held).all():
                raise ValueError(f"{name} of a calibration must be finite numbers (L,); got shape {held.shape}")
            if name != "offset" and (held < 0).any():
                raise ValueError(f"slopes of a calibration must be 0 or more; got {held.min()}")
            held.flags.writeable = False
            object.__setattr__(self, name, held)

    @classmethod
    def straight(cls, slope: np.ndarray, offset: np.ndarray) -> SlopeMap:
        """Return slope x + offset."""
        return cls(slope, slope, offset)

    def of_block(self, x: np.ndarray, span: slice, exclusive: bool) -> np.ndarray:
        """Return the logits (w, n) that a block's become."""
        low, high, offset = (each[span, None] for each in (self.low, self.high, self.offset))
        x = np.clip(x, -_FAR, _FAR)
        result = low * x + offset
        bent = np.flatnonzero(low != high)
        if len(bent):
            held = x[bent]
            result[bent] = low[bent] * log_expit(held) - high[bent] * log_expit(-held) + offset[bent]
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the map as plain lists and texts for JSON."""
        return {name: getattr(self, name).tolist() for name in ("low", "high", "offset")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], num_labels: int) -> SlopeMap:
        """Return the map that `to_dict` described."""
        held = cls(*(_numbers(data[name], name) for name in ("low", "high", "offset")))
        _check_length(held.low, num_labels, "slopes")
        return held


@dataclass(frozen=True, eq=False)
class IsotonicMap:
    """Probabilities that rise with the logit, straight between knots, each label's mixed with that of its pool.

    A label's probability is own x (its own curve) + (1 - own) x (its pool's). Outside its knots a curve is level.

    Attributes:
        starts: (C + 1,) int64; curve c has the knots starts[c] to starts[c + 1]. The first L curves are the labels'.
        x: (M,) logits of the knots, ascending in each curve.
        y: (M,) probabilities, never falling in a curve.
        own: (L,) in [0, 1].
        pool: (L,) int64, the curve of the label's pool; -1: none. A label without either curve stays as it is.
    """

    starts: np.ndarray
    x: np.ndarray
    y: np.ndarray
    own: np.ndarray
    pool: np.ndarray
    kind = "isotonic"

    def __post_init__(self) -> None:
        _check_knots(self.starts, self.x, self.y)
        num_labels, num_curves = len(self.own), len(self.starts) - 1
        lengths = np.diff(self.starts)
        good = self.own.shape == self.pool.shape and num_curves >= num_labels
        good = good and bool(((self.own >= 0) & (self.own <= 1)).all())
        good = good and bool(((self.pool >= -1) & (self.pool < num_curves)).all())
        good = good and bool((lengths[:num_labels][self.own > 0] > 0).all())
        good = good and bool((lengths[self.pool[(self.pool >= 0) & (self.own < 1)]] > 0).all())
        good = good and bool((self.own[self.pool < 0] % 1 == 0).all())
        if not good:
            raise ValueError("the shares of labels and pools do not fit the curves")

    def of_block(self, x: np.ndarray, span: slice, exclusive: bool) -> np.ndarray:
        """Return the logits (w, n) that a block's become."""
        own, pool = self.own[span], self.pool[span]
        if exclusive:
            return x
        mixed = np.zeros_like(x)
        for row in np.flatnonzero(own > 0):
            mixed[row] = own[row] * self._interpolate(x[row], span.start + int(row))
        for curve in np.unique(pool[(pool >= 0) & (own < 1)]).tolist():
            rows = np.flatnonzero((pool == curve) & (own < 1))
            mixed[rows] += (1 - own[rows, None]) * self._interpolate(x[rows], curve)
        with np.errstate(divide="ignore"):
            result = np.log(mixed) - np.log1p(-np.minimum(mixed, 1.0))
        as_it_is = (pool < 0) & (own == 0)
        result[as_it_is] = x[as_it_is]
        return result

    def _interpolate(self, x: np.ndarray, curve: int) -> np.ndarray:
        knots = slice(self.starts[curve], self.starts[curve + 1])
        return np.interp(x, self.x[knots], self.y[knots])

    def to_dict(self) -> dict[str, Any]:
        """Return the map as plain lists and texts for JSON."""
        return {name: getattr(self, name).tolist() for name in ("starts", "x", "y", "own", "pool")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], num_labels: int) -> IsotonicMap:
        """Return the map that `to_dict` described."""
        x, y, own = (_numbers(data[name], name) for name in ("x", "y", "own"))
        starts, pool = (_whole_numbers(data[name], name) for name in ("starts", "pool"))
        _check_length(own, num_labels, "isotonic curves")
        return cls(starts, x, y, own, pool)


@dataclass(frozen=True, eq=False)
class LossMap:
    """From the logit that a loss is lowest at to that of the probability it is lowest for; see `undo_loss`.

    Attributes:
        loss: The loss of the any-of groups.
        exclusive_loss: The loss of the exclusive groups.
        options: The losses' options, by name; each goes to those that have it.
    """

    loss: str
    exclusive_loss: str
    options: Mapping[str, float]
    kind = "loss"

    def of_block(self, x: np.ndarray, span: slice, exclusive: bool) -> np.ndarray:
        """Return the logits (w, n) that a block's become."""
        link = EXCLUSIVE_LINKS[self.exclusive_loss] if exclusive else LINKS[self.loss]
        return link.of(x, self.options)

    def to_dict(self) -> dict[str, Any]:
        """Return the map as plain lists and texts for JSON."""
        return {"loss": self.loss, "exclusive_loss": self.exclusive_loss, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], num_labels: int) -> LossMap:
        """Return the map that `to_dict` described."""
        loss, exclusive, options = data["loss"], data["exclusive_loss"], data["options"]
        if loss not in LINKS or exclusive not in EXCLUSIVE_LINKS:
            raise ValueError(f"losses that are not known: {loss!r}, {exclusive!r}")
        known = {*LINKS[loss].options, *EXCLUSIVE_LINKS[exclusive].options}
        numbers = {str(name): float(value) for name, value in options.items()}
        if not set(numbers) <= known:
            raise ValueError(f"options that are not those of {loss!r} and {exclusive!r}: {options!r}")
        check_ranges(numbers)
        return cls(loss, exclusive, numbers)


MAPS: dict[str, Any] = {kind.kind: kind for kind in (SlopeMap, IsotonicMap, LossMap)}


def _check_knots(starts: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError unless the knots are curves that rise from 0 or more to 1 or less."""
    good = len(starts) and starts[0] == 0 and starts[-1] == len(x) == len(y) and bool((np.diff(starts) >= 0).all())
    if not good:
        raise ValueError("the knots of the curves are not as many as their starts say")
    inner = np.ones(max(len(x) - 1, 0), dtype=bool)
    inner[starts[(starts > 0) & (starts < len(x))] - 1] = False  # from one curve to the next
    rises = (np.diff(x)[inner] > 0).all() and (np.diff(y)[inner] >= 0).all()
    if not (np.isfinite(x).all() and rises and y.min(initial=0) >= 0 and y.max(initial=1) <= 1):
        raise ValueError("a curve must have ascending finite logits and rising probabilities in [0, 1]")


def _numbers(values: Any, name: str) -> np.ndarray:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{name} must be a list of numbers")
    held = np.array(values, dtype=np.float64)
    if not np.isfinite(held).all():
        raise ValueError(f"{name} must be finite")
    return held


def _whole_numbers(values: Any, name: str) -> np.ndarray:
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**62 for value in values):
        raise ValueError(f"{name} must be a list of whole numbers")
    return np.array(values, dtype=np.int64)


def _check_length(held: np.ndarray, num_labels: int, what: str) -> None:
    if len(held) != num_labels:
        raise ValueError(f"{what} must be of {num_labels} labels; got {len(held)}")
