"""Losses by name, from a fixed table, for every group of a label space."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mlabel._checks import resolve
from mlabel.labels import Group, LabelSpace
from mlabel.losses.functional import ELEMENTWISE, OVER_CLASSES, PER_SAMPLE, binary_cross_entropy
from mlabel.losses.module import Loss
from mlabel.losses.per_group import PerGroup
from mlabel.weights import class_weights, count_labels

Formula = Callable[..., Tensor]
# Name -> the function of any-of groups, and of exclusive groups. "cross_entropy" is one of both.
_ANY_OF: dict[str, Formula] = {fn.__name__: fn for fn in ELEMENTWISE | PER_SAMPLE} | {
    "cross_entropy": binary_cross_entropy
}
_EXCLUSIVE: dict[str, Formula] = {fn.__name__: fn for fn in OVER_CLASSES}

NAMES: tuple[str, ...] = tuple(sorted(_ANY_OF))
EXCLUSIVE_NAMES: tuple[str, ...] = tuple(sorted(_EXCLUSIVE))

# Arguments that are no options: counts come from the training targets, the others from `Loss` and from training.
_COUNTED = ("counts", "num_samples")
_GIVEN = frozenset({*_COUNTED, "weight", "pos_weight", "mask", "dim", "epoch"})


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
    exclusive_loss: str | None = None,
) -> Loss | PerGroup:
    """Return the loss of a name for all groups of a space.

    Any-of groups get the named function, exclusive groups that of `exclusive_loss`. "cross_entropy" means
    `binary_cross_entropy` for any-of groups.

    Args:
        name: One of `NAMES`; in a space of exclusive groups only, also one of `EXCLUSIVE_NAMES`.
        space: The columns' meaning.
        targets: The training part's targets (N, L), in which labels are counted. Needed with `weighting`, and by
            "distribution_balanced" and "seesaw".
        unknown: What is not known of them: SciPy sparse bool (True = unknown), a dense mask (True = known), or None.
        weighting: A scheme of `weights.class_weights`, for the positive term of any-of labels and for the classes of
            exclusive groups; "neg_pos" leaves exclusive groups unweighted. None: no weights.
        cap: The largest weight, before normalising.
        reduction: "mean", "batchmean" or "sum".
        options: Keyword options of the functions, by name, such as {"gamma": 1.5}; see `options_of`. Each goes to
            every function that takes it.
        exclusive_loss: What exclusive groups get, one of `EXCLUSIVE_NAMES`. None: `name` where it is one of them, else
            "cross_entropy".

    Returns:
        A `Loss` where the space has any-of groups only, else a `PerGroup`.

    Raises:
        ValueError: an unknown name, scheme, reduction or option; a loss for groups that the space does not have;
            counts wanted without targets; "neg_pos" for a space of exclusive groups only.

    Example:
        >>> create("focal", space=LabelSpace([Group("tags", ["cat", "dog"])]), options={"gamma": 1.5})
        Loss(focal(gamma=1.5), reduction='mean')
    """
    any_of, exclusive = _choose(name, exclusive_loss, space)
    used = [fn for fn, groups in ((any_of, space.any_of.any()), (exclusive, space.exclusive_groups)) if groups]
    known_options = _options(used)
    for option in options or {}:
        resolve(option, known_options, f"option of {' and '.join(fn.__name__ for fn in used)}")
    counted = _count(used, weighting, space, (targets, unknown))
    weights = None if weighting is None else _weights(weighting, space, counted, cap)
    arguments = {**dict(options or {}), **counted}

    def make(group: Group, span: slice) -> Loss:
        fn = _bind(exclusive if group.exclusive else any_of, arguments, span)
        weight = None if weights is None else weights[span]
        if group.exclusive:
            return Loss(fn, weight=weight, reduction=reduction)
        return Loss(fn, pos_weight=weight, reduction=reduction)

    if not space.exclusive_groups:
        return make(space.groups[0], slice(None))
    return PerGroup(space, {group.name: make(group, space.slices[group.name]) for group in space.groups})


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a named loss and their defaults.

    Args:
        name: The loss's name, as `create` takes it.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> options_of("asymmetric")
        {'gamma_neg': 4.0, 'gamma_pos': 1.0, 'clip': 0.05}
    """
    resolve(name, {**_ANY_OF, **_EXCLUSIVE}, "loss")
    return _options([table[name] for table in (_ANY_OF, _EXCLUSIVE) if name in table])


def _options(functions: Sequence[Formula]) -> dict[str, Any]:
    return {
        option.name: option.default
        for fn in functions
        for option in inspect.signature(fn).parameters.values()
        if option.kind is inspect.Parameter.KEYWORD_ONLY and option.name not in _GIVEN
    }


def _choose(name: str, exclusive_loss: str | None, space: LabelSpace) -> tuple[Formula, Formula]:
    """Return the function of any-of groups and that of exclusive groups."""
    resolve(name, {**_ANY_OF, **_EXCLUSIVE}, "loss")
    if exclusive_loss is not None:
        resolve(exclusive_loss, _EXCLUSIVE, "exclusive loss")
        if not space.exclusive_groups:
            raise ValueError(f"exclusive_loss={exclusive_loss!r} is for exclusive groups, and the space has none")
    if name in _ANY_OF:
        return _ANY_OF[name], _EXCLUSIVE[exclusive_loss or "cross_entropy"]
    if space.any_of.any():
        raise ValueError(
            f"{name!r} is a loss of exclusive groups, and the space has any-of labels: name theirs, one of "
            f"{', '.join(NAMES)}, and give exclusive_loss={name!r}"
        )
    if exclusive_loss not in (None, name):
        raise ValueError(f"both {name!r} and exclusive_loss={exclusive_loss!r} are for the exclusive groups; give one")
    return binary_cross_entropy, _EXCLUSIVE[name]


def _count(
    used: Sequence[Formula], weighting: str | None, space: LabelSpace, data: tuple[Any, Any]
) -> dict[str, np.ndarray]:
    """Return positives and known samples (L,) by the names of `_COUNTED`; nothing where nobody needs them."""
    wanted = [fn.__name__ for fn in used if "counts" in inspect.signature(fn).parameters]
    wanted += [] if weighting is None else [f"weighting={weighting!r}"]
    if not wanted:
        return {}
    targets, unknown = data
    if targets is None:
        raise ValueError(f"{wanted[0]} counts labels: give the training part's targets=")
    counts, known = count_labels(targets, unknown)
    if len(counts) != space.num_labels:
        raise ValueError(f"targets have {len(counts)} columns, but the space has {space.num_labels} labels")
    return dict(zip(_COUNTED, (counts, known), strict=True))


def _weights(weighting: str, space: LabelSpace, counted: Mapping[str, np.ndarray], cap: float) -> np.ndarray:
    if weighting == "neg_pos" and not space.any_of.any():
        raise ValueError(
            "weighting='neg_pos' weighs the positive term of any-of labels, and the space has exclusive groups only; "
            "use 'inverse_frequency' or 'effective_number'"
        )
    return class_weights(counted["counts"], counted["num_samples"], scheme=weighting, cap=cap, space=space)


def _bind(fn: Formula, arguments: Mapping[str, Any], span: slice) -> Formula:
    """Return the function with those of the arguments that it takes; of counts those of its columns."""
    taken = inspect.signature(fn).parameters
    mine = {name: value[span] if name in _COUNTED else value for name, value in arguments.items() if name in taken}
    return partial(fn, **mine) if mine else fn
