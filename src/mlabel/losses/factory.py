"""Losses by name, from a fixed table, for every group of a label space."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mlabel._checks import resolve
from mlabel.labels import Group, LabelSpace
from mlabel.losses.functional import asymmetric, binary_cross_entropy, cross_entropy, focal
from mlabel.losses.module import Loss, PerGroup
from mlabel.weights import class_weights, count_labels

# Name -> the function of any-of groups. Exclusive groups have cross-entropy under every name.
_ANY_OF: dict[str, Callable[..., Tensor]] = {
    "asymmetric": asymmetric,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": binary_cross_entropy,
    "focal": focal,
}

NAMES: tuple[str, ...] = tuple(_ANY_OF)


def create(
    name: str,
    *,
    space: LabelSpace,
    targets: Any = None,
    unknown: Any = None,
    weighting: str | None = None,
    cap: float = 100.0,
    reduction: str = "mean",
    options: Mapping[str, Any] | None = None,
) -> Loss | PerGroup:
    """Return the loss of a name for all groups of a space.

    Any-of groups get the named elementwise function, exclusive groups `cross_entropy`. "cross_entropy" means
    `binary_cross_entropy` for any-of groups.

    Args:
        name: One of `NAMES`.
        space: The columns' meaning.
        targets: The training part's targets (N, L), from which weights are counted. Needed with `weighting` only.
        unknown: What is not known of them: SciPy sparse bool (True = unknown), a dense mask (True = known), or None.
        weighting: A scheme of `weights.class_weights`, for the positive term of any-of labels and for the classes of
            exclusive groups; "neg_pos" leaves exclusive groups unweighted. None: no weights.
        cap: The largest weight, before normalising.
        reduction: "mean", "batchmean" or "sum".
        options: Keyword options of the function, by name, such as {"gamma": 1.5}; see `options_of`.

    Returns:
        A `Loss` where the space has any-of groups only, else a `PerGroup`.

    Raises:
        ValueError: an unknown name, scheme, reduction or option; weighting without targets; "neg_pos" for a space
            of exclusive groups only.

    Example:
        >>> create("focal", space=LabelSpace([Group("tags", ["cat", "dog"])]), options={"gamma": 1.5})
        Loss(focal(gamma=1.5), reduction='mean')
    """
    resolve(name, _ANY_OF, "loss")
    known = options_of(name)
    for option in options or {}:
        resolve(option, known, f"option of {name}")
    weights = None if weighting is None else _weights(weighting, space, (targets, unknown), cap)
    make = partial(_group_loss, name, options=dict(options or {}), weighting=weighting, reduction=reduction)
    if not space.exclusive_groups:
        return make(space.groups[0], weights)
    parts = {name: None if weights is None else weights[span] for name, span in space.slices.items()}
    return PerGroup(space, {group.name: make(group, parts[group.name]) for group in space.groups})


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a named loss and their defaults.

    Example:
        >>> options_of("asymmetric")
        {'gamma_neg': 4.0, 'gamma_pos': 1.0, 'clip': 0.05}
    """
    options: dict[str, Any] = {}
    for fn in _functions(name):
        for option in inspect.signature(fn).parameters.values():
            if option.kind is inspect.Parameter.KEYWORD_ONLY and option.name != "weight":
                options[option.name] = option.default
    return options


def _functions(name: str) -> list[Callable[..., Tensor]]:
    """Return the functions that take a name's options: "cross_entropy" names that of exclusive groups."""
    fn = resolve(name, _ANY_OF, "loss")
    return [fn, cross_entropy] if name == "cross_entropy" else [fn]


def _group_loss(
    name: str,
    group: Group,
    weights: np.ndarray | None,
    *,
    options: dict[str, Any],
    weighting: str | None,
    reduction: str,
) -> Loss:
    fn = cross_entropy if group.exclusive else _ANY_OF[name]
    taken = inspect.signature(fn).parameters
    mine = {option: value for option, value in options.items() if option in taken}
    bound = partial(fn, **mine) if mine else fn
    if not group.exclusive:
        return Loss(bound, pos_weight=weights, reduction=reduction)
    return Loss(bound, weight=None if weighting == "neg_pos" else weights, reduction=reduction)


def _weights(weighting: str, space: LabelSpace, data: tuple[Any, Any], cap: float) -> np.ndarray:
    targets, unknown = data
    if targets is None:
        raise ValueError(f"weighting={weighting!r} counts labels: give the training part's targets=")
    if weighting == "neg_pos" and not space.any_of.any():
        raise ValueError(
            "weighting='neg_pos' weighs the positive term of any-of labels, and the space has exclusive groups only; "
            "use 'inverse_frequency' or 'effective_number'"
        )
    counts, known = count_labels(targets, unknown)
    if len(counts) != space.num_labels:
        raise ValueError(f"targets have {len(counts)} columns, but the space has {space.num_labels} labels")
    return class_weights(counts, known, scheme=weighting, cap=cap, space=space)
