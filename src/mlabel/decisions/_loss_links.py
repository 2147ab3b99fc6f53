"""From the logit at which a loss is lowest on average to the logit of the probability that it is lowest for.

A label that holds with probability q has the expected loss q L+(x) + (1 - q) L-(x). Where that is lowest its slope is
0, so that q / (1 - q) = L-'(x) / -L+'(x): the way back needs the slopes of the loss only, and no search. Of an
exclusive group with softmax s and the expected loss -sum of q_k f(s_k), q_k is proportional to 1 / f'(s_k).

Everything is written with logarithms, so that no logit is too large: p = sigmoid(x) throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import log_expit, logsumexp

# Logits beyond it are taken to be there; the probability of the label is 0 or 1 to the last digit long before.
_FARTHEST = 600.0


@dataclass(frozen=True)
class Link:
    """The way back from a loss.

    Attributes:
        function: Logits (w, n) and options to logits (w, n); of an exclusive group w is K.
        options: The options that it takes, with the loss's defaults.
    """

    function: Callable[..., np.ndarray]
    options: Mapping[str, float]

    def of(self, x: np.ndarray, options: Mapping[str, float]) -> np.ndarray:
        """Return the logits of the probabilities (w, n) for logits (w, n), with those of `options` that it takes."""
        held = {name: options.get(name, default) for name, default in self.options.items()}
        return self.function(np.clip(x, -_FARTHEST, _FARTHEST), **held)


def _as_it_is(x: np.ndarray) -> np.ndarray:
    """Return the logits as they are: these losses are lowest at the probability itself (they are proper)."""
    return x


def _focal(x: np.ndarray, gamma: float) -> np.ndarray:
    return _log_slope(x, gamma) - _log_slope(-x, gamma)


def _log_slope(x: np.ndarray, gamma: float) -> np.ndarray:
    """Return log of the slope of -p^gamma log(1 - p): p^gamma (p - gamma (1 - p) log(1 - p))."""
    log_p, log_rest = log_expit(x), log_expit(-x)
    return (1 + gamma) * log_p + np.log1p(-gamma * np.exp(-x) * log_rest)


def _asymmetric(x: np.ndarray, gamma_neg: float, gamma_pos: float, clip: float) -> np.ndarray:
    negative = _log_shifted_slope(x, gamma_neg, clip) if clip else _log_slope(x, gamma_neg)
    return negative - _log_slope(-x, gamma_pos)


def _log_shifted_slope(x: np.ndarray, gamma: float, clip: float) -> np.ndarray:
    """Return log of the slope of -m^gamma log(1 - m), m = max(p - clip, 0); minus infinity where it is level."""
    log_p, log_rest = log_expit(x), log_expit(-x)
    m = np.exp(log_p) - clip
    active = m > 0
    m, rest = np.where(active, m, 0.5), np.where(active, np.exp(log_rest) + clip, 0.5)  # rest is 1 - m
    inside = 1 / rest - gamma * np.log(rest) / m
    return np.where(active, log_p + log_rest + gamma * np.log(m) + np.log(inside), -np.inf)


def _poly1(x: np.ndarray, epsilon: float) -> np.ndarray:
    # 1 + epsilon p = (1 - p) + (1 + epsilon) p, whose parts are never negative.
    with np.errstate(divide="ignore"):
        more = np.log(1 + epsilon)
    log_p, log_rest = log_expit(x), log_expit(-x)
    return x + np.logaddexp(log_p, more + log_rest) - np.logaddexp(log_rest, more + log_p)


def _focal_classes(x: np.ndarray, gamma: float) -> np.ndarray:
    """Return -log of (1 - s)^gamma / s - gamma (1 - s)^(gamma - 1) log s, the slope of (1 - s)^gamma log s."""
    log_share = x - logsumexp(x, axis=0)
    log_rest = _log_rest(log_share)
    with np.errstate(divide="ignore"):
        other = np.log(-gamma * log_share)
    return (1 - gamma) * log_rest - np.logaddexp(log_rest - log_share, other)


def _log_rest(log_share: np.ndarray) -> np.ndarray:
    """Return log(1 - s) of the classes (K, n), as the sum of the others: no digit is lost where s is nearly 1."""
    empty = np.full_like(log_share[:1], -np.inf)
    before = np.concatenate([empty, np.logaddexp.accumulate(log_share[:-1], axis=0)])
    after = np.concatenate([np.logaddexp.accumulate(log_share[:0:-1], axis=0)[::-1], empty])
    return np.logaddexp(before, after)


LINKS: dict[str, Link] = {
    "binary_cross_entropy": Link(_as_it_is, {}),
    "squared_error": Link(_as_it_is, {}),
    "focal": Link(_focal, {"gamma": 2.0}),
    "asymmetric": Link(_asymmetric, {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}),
    "poly1": Link(_poly1, {"epsilon": 1.0}),
}
LINKS["cross_entropy"] = LINKS["binary_cross_entropy"]
EXCLUSIVE_LINKS: dict[str, Link] = {
    "cross_entropy": Link(_as_it_is, {}),
    "focal_cross_entropy": Link(_focal_classes, {"gamma": 2.0}),
}


def check_ranges(options: Mapping[str, float]) -> None:
    """Raise ValueError where an option is out of its range; within it, what is undone rises with the logit."""
    for name, value in options.items():
        least = -1.0 if name == "epsilon" else 0.0
        if not least <= value < (1.0 if name == "clip" else np.inf):
            below = " and below 1" if name == "clip" else ""
            raise ValueError(f"{name} of a loss must be finite, {least:g} or more{below}; got {value!r}")
