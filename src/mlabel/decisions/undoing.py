"""Undoing what a loss does to probabilities: the way back from where it is lowest to what it is lowest for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mlabel._checks import resolve, to_numpy
from mlabel.decisions._loss_links import EXCLUSIVE_LINKS, LINKS, check_ranges
from mlabel.decisions._maps import LossMap
from mlabel.decisions.calibration import Calibration
from mlabel.labels import LabelSpace


def undo_loss(
    loss: str,
    space: LabelSpace | int,
    *,
    exclusive_loss: str = "cross_entropy",
    options: Mapping[str, Any] | None = None,
    pos_weight: Any = None,
    offset: Any = None,
) -> Calibration:
    """Return the calibration that takes a loss's bias away: from where it is lowest to the probability it stands for.

    Cross-entropy and squared error are lowest, on average, at the probability itself; focal and asymmetric losses are
    not, nor is any loss whose positive term has a weight. A model that has learned such a loss as well as can be says
    x, where the expected loss q L+(x) + (1 - q) L-(x) is lowest. This gives back q, with
    q / (1 - q) = L-'(x) / -L+'(x), in closed form for every loss here. A weight of the positive term takes log(weight)
    from the logit. It undoes what the loss does, not what too few or too many steps of training do: what is left is for
    `fit_calibration`.

    With `clip` above 0 the asymmetric loss is lowest above `clip`, however improbable the label: a score of `clip` or
    less becomes the probability 0. With `gamma_pos` 0 besides, it is lowest at an infinite logit for all labels above a
    certain probability, which is then the highest one given.

    Args:
        loss: Of the any-of groups: binary_cross_entropy, squared_error, focal, asymmetric or poly1.
        space: The columns' meaning, or a number of any-of labels.
        exclusive_loss: Of the exclusive groups: cross_entropy or focal_cross_entropy.
        options: The losses' options, as `losses.create` takes them; each goes to those that have it. `alpha` of the
            focal loss may be a number or one for each label (L,).
        pos_weight: Weights of the positive terms, and of the classes of exclusive groups: a number, or (L,).
        offset: What the loss added to the logits (L,), as `losses.LogitAdjusted` does; None: nothing.

    Raises:
        ValueError: another loss or option, an option out of its range, or weights that are not above 0.

    References:
        Charoenphakdee, Vongkulbhisal, Chairatanakul and Sugiyama (2021), "On focal loss for class-posterior probability
        estimation: a theoretical perspective". Ridnik et al. (2021), "Asymmetric loss for multi-label classification".
        Elkan (2001), "The foundations of cost-sensitive learning" (weights).

    Example:
        >>> undo_loss("binary_cross_entropy", 1, pos_weight=4.0).apply([[np.log(4.0)]])
        array([[0.5]])
        >>> undo_loss("focal", 2, options={"gamma": 2.0}).apply([[-1.0, 0.0]]).round(3)
        array([[0.064, 0.5  ]])
    """
    link = resolve(loss, LINKS, "loss that can be undone")
    exclusive_link = resolve(exclusive_loss, EXCLUSIVE_LINKS, "exclusive loss that can be undone")
    num_labels = space if isinstance(space, int) else space.num_labels
    held = dict(options or {})
    gain = -np.log(_weights(pos_weight, num_labels))
    alpha = held.pop("alpha", None)
    if alpha is not None:
        if loss != "focal":
            raise ValueError(f"loss {loss!r} has no option 'alpha'")
        shares = np.broadcast_to(np.asarray(to_numpy(alpha), dtype=np.float64), (num_labels,))
        if not ((shares > 0) & (shares < 1)).all():
            raise ValueError(f"alpha must be above 0 and below 1 to be undone; got {alpha!r}")
        any_of = np.ones(num_labels, dtype=bool) if isinstance(space, int) else space.any_of
        gain = gain - np.where(any_of, np.log(shares) - np.log1p(-shares), 0.0)
    known = dict.fromkeys((*link.options, *exclusive_link.options))
    numbers = {name: float(value) for name, value in held.items() if resolve(name, known, "option") is None}
    check_ranges(numbers)
    named = Calibration(num_labels, (), None if isinstance(space, int) else space, f"undo {loss}")
    adjusted = named if offset is None else named.offset_by(offset)
    return replace(adjusted, steps=(*adjusted.steps, LossMap(loss, exclusive_loss, numbers))).offset_by(gain)


def _weights(pos_weight: Any, num_labels: int) -> np.ndarray:
    held = np.array(1.0 if pos_weight is None else to_numpy(pos_weight), dtype=np.float64)
    if held.shape not in ((), (num_labels,)) or not ((held > 0) & np.isfinite(held)).all():
        raise ValueError(f"pos_weight must be finite numbers above 0, one or ({num_labels},); got {pos_weight!r}")
    return np.broadcast_to(held, (num_labels,))
