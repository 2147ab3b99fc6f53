"""Risk control: thresholds that come with a promise about images that were not looked at.

What is promised, and of whom, is said by `RiskControl.promise`; when it does not hold, by `docs/guarantees.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import binom

from mlabel._checks import resolve, to_numpy
from mlabel.decisions.thresholds import Thresholds
from mlabel.labels import LabelSpace, decide
from mlabel.metrics._blocks import block_size, blocks, known_positives, rows_of
from mlabel.metrics.ranking import Checked, check_probabilities

RISKS = {
    "false_negative_rate": "of the labels that hold, the share that is missed, image by image",
    "false_discovery_rate": "of the labels decided to hold, the share that does not, image by image (none decided: 0)",
}
RISK_SCOPES = {
    "global": "one threshold and one promise, of all any-of labels",
    "group": "one for each any-of group",
    "label": "one for each label, of its own images",
}
# Of a block of rows.
_ENTRIES = 2**20
# Everything is decided to hold; nothing is.
EVERYTHING, NOTHING = 0.0, float(np.inf)


@dataclass(frozen=True, eq=False)
class RiskControl:
    """Thresholds that keep a risk at or under `alpha`.

    Attributes:
        values: (L,) float64 thresholds on the probabilities; NaN at the columns of exclusive groups.
        reached: (L,) bool; False where so few images, or such scores, allow no threshold but the trivial one, which
            keeps the promise by deciding that everything holds (false negatives) or nothing does (false discoveries).
        estimate: (L,) the risk of that threshold on the images it was chosen on; NaN where there are none.
        num_images: (L,) how many images that was measured on.
        risk: What is kept small, one of `RISKS`.
        alpha: How small.
        delta: None: in expectation; else the probability of failing.
        scope: What has a threshold and a promise of its own.
        space: The columns' meaning; None: every column is an any-of label.
    """

    values: np.ndarray
    reached: np.ndarray
    estimate: np.ndarray
    num_images: np.ndarray
    risk: str
    alpha: float
    delta: float | None
    scope: str
    space: LabelSpace | None = None

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        each = {"global": "", "group": " of each group", "label": " of each label"}[self.scope]
        where = {
            ("false_negative_rate", "label"): "the share of a label's images in which it is missed",
            ("false_discovery_rate", "label"): "the share of wrong ones among a label's decisions",
            ("false_negative_rate", ""): f"the mean share of an image's labels{each} that are missed, among images "
            "with any",
            ("false_discovery_rate", ""): f"the mean share of wrong ones among an image's decided labels{each}",
        }[self.risk, "label" if self.scope == "label" else ""]
        if self.delta is None:
            return f"{where} is at most {self.alpha:g} on average over calibration sets and new images drawn alike"
        sure = f"with probability {1 - self.delta:g} over calibration sets"
        return f"{sure}, {where} is at most {self.alpha:g} for new images drawn alike"

    def decide(self, probabilities: Any) -> np.ndarray:
        """Return decisions (N, L) bool for `probabilities` (N, L); see `mlabel.labels.decide`."""
        return decide(probabilities, self.values, self.space)

    def to_thresholds(self) -> Thresholds:
        """Return the thresholds by themselves, for a bundle or a `Tagger`; the objective says risk and alpha."""
        exclusive = np.isnan(self.values)
        source = np.where(exclusive, "exclusive", np.where(self.reached, self.scope, "default"))
        kept = f"{self.risk} <= {self.alpha:g}" + ("" if self.delta is None else f" with delta {self.delta:g}")
        return Thresholds(self.values, tuple(source.tolist()), self.space, kept, self.scope)


def control_risk(
    probabilities: Any,
    targets: Any,
    alpha: float,
    *,
    risk: str = "false_negative_rate",
    delta: float | None = None,
    scope: str = "global",
    levels: Any = None,
    space: LabelSpace | None = None,
    mask: Any = None,
) -> RiskControl:
    """Return thresholds whose risk on new images is at most `alpha`, with a finite-sample guarantee.

    The images must be drawn like those to come, and must have had no part in the making of the model, of its
    calibration or of `levels`. Among the thresholds that keep the promise it is the highest for false negatives (the
    fewest labels decided) and the lowest for false discoveries (the most).

    - `false_negative_rate` without `delta`: conformal risk control. An image's loss never falls as the threshold rises;
      the highest one is taken at which (sum of losses + 1) / (n + 1) <= alpha. The promise is about the *average* over
      calibration sets and new images: a single calibration set may do worse.
    - Either risk with `delta`: learn then test. Thresholds on a grid that was fixed beforehand are tested in order
      from the safe end, each hypothesis being that its risk is above alpha, until the first is not rejected at level
      delta (fixed sequence testing). The p-value is that of Hoeffding and Bentkus; with scope `label`, where losses
      are 0 or 1, the exact binomial one. The promise is about *this* calibration set, and fails with probability delta
      at most.
    - `false_discovery_rate` needs `delta`: its loss goes up and down with the threshold. With scope `label` it is the
      share of wrong ones among the decisions for a label. Thresholds at which too few images are decided to reject
      anything are passed over, which is right where higher scores of a label are no less often right than lower ones;
      where you doubt that, give `levels` whose highest has decisions enough.

    With `group` and `label` each threshold keeps its promise by itself. For all of m to hold together with probability
    1 - delta, give delta / m.

    What is unknown counts as if it were not there, in the losses too: the promise is then one about what is known, and
    it carries over where what is known is a fair sample. Images without a known label that holds do not enter false
    negatives, neither n nor the promise; in false discoveries all images enter, those without decisions with loss 0.

    Where alpha cannot be reached the trivial threshold is given (0, everything holds; or inf, nothing does),
    which keeps the promise, and `reached` is False. For false negatives in expectation that is so with fewer than
    1 / alpha - 1 images, whatever the scores.

    Args:
        probabilities: (N, L) in [0, 1]: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        alpha: Above 0 and below 1.
        risk: `false_negative_rate` or `false_discovery_rate`.
        delta: None, or above 0 and below 1.
        scope: `global`, `group` or `label`; of any-of labels. For exclusive groups see `fit_conformal_sets`.
        levels: The grid of thresholds, in (0, 1), chosen without a look at these images; None: 999 of them, evenly in
            log odds from 0.0001 to 0.9999. With `delta` only.
        space: The columns' meaning; None: one any-of group.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        ValueError: probabilities, alpha, delta or levels out of range, shapes that differ, an unknown risk or scope, or
            false discoveries without delta.

    References:
        Angelopoulos, Bates, Fisch, Lei and Schuster (2024), "Conformal risk control". Angelopoulos, Bates, Candès,
        Jordan and Lei (2021), "Learn then test: calibrating predictive algorithms to achieve risk control". Bates,
        Angelopoulos, Lei, Malik and Jordan (2021), "Distribution-free, risk-controlling prediction sets" (the p-value
        of Hoeffding and Bentkus).

    Example:
        >>> probabilities, targets = np.linspace(0, 1, 101)[:, None], np.ones((101, 1))
        >>> control = control_risk(probabilities, targets, 0.1)
        >>> control.values, bool(control.reached[0])
        (array([0.09]), True)
    """
    resolve(risk, RISKS, "risk")
    resolve(scope, RISK_SCOPES, "scope of a risk")
    check_open(alpha, "alpha")
    if delta is not None:
        check_open(delta, "delta")
    elif risk == "false_discovery_rate":
        raise ValueError(
            "the false discovery rate goes up and down with the threshold, so that there is no guarantee in "
            "expectation; give delta=, such as 0.1, the probability with which the guarantee may fail"
        )
    checked = check_probabilities(probabilities, targets, mask)
    num_labels = checked[0].shape[1]
    if space is not None and space.num_labels != num_labels:
        raise ValueError(f"probabilities have {num_labels} columns, but the space has {space.num_labels} labels")
    if levels is not None and delta is None:
        raise ValueError("levels are for guarantees with delta; in expectation every threshold is tried")
    grid = _as_levels(levels)
    values, estimate = np.full(num_labels, np.nan), np.full(num_labels, np.nan)
    reached, images = np.zeros(num_labels, dtype=bool), np.zeros(num_labels, dtype=np.int64)
    for columns, found in _choose(checked, scope, space, grid, risk=risk, alpha=alpha, delta=delta):
        values[columns], reached[columns], estimate[columns], images[columns] = found
    return RiskControl(values, reached, estimate, images, risk, alpha, delta, scope, space)


# A threshold, whether it is more than the trivial one, its risk here, and the images that this was measured on; each a
# number, or one for each label of a block.
Chosen = tuple[Any, Any, Any, Any]


def _choose(
    checked: Checked,
    scope: str,
    space: LabelSpace | None,
    grid: np.ndarray,
    *,
    risk: str,
    alpha: float,
    delta: float | None,
) -> Iterator[tuple[np.ndarray, Chosen]]:
    """Yield columns with what was chosen for them."""
    num_labels = checked[0].shape[1]
    any_of = np.ones(num_labels, dtype=bool) if space is None else space.any_of
    if scope == "label":
        columns = np.flatnonzero(any_of)
        size = block_size(checked[0].shape[0] * 16 + len(grid) * 32, most=64)
        for start, stop in blocks(len(columns), size):
            few = columns[start:stop]
            part = _columns_of(checked, few)
            yield few, _of_labels(part, grid, risk, alpha, delta)
        return
    spans = [slice(0, num_labels)] if space is None else [space.slices[g.name] for g in space.groups if not g.exclusive]
    pools = [np.arange(num_labels)[span] for span in spans]
    if scope == "global" and pools:
        pools = [np.concatenate(pools)]
    for columns in pools:
        yield columns, _of_pool(_columns_of(checked, columns), grid, risk, alpha, delta)


def _columns_of(checked: Checked, columns: np.ndarray) -> Checked:
    scores, targets, unknown = checked
    is_run = columns[-1] - columns[0] + 1 == len(columns)
    picked: Any = slice(int(columns[0]), int(columns[-1]) + 1) if is_run else columns
    unknown = None if unknown is None else sp.csr_array(unknown[:, picked])
    return scores[:, picked], sp.csr_array(targets[:, picked]), unknown


def _of_pool(checked: Checked, grid: np.ndarray, risk: str, alpha: float, delta: float | None) -> Chosen:
    """Return what is chosen for labels with one threshold, whose losses are means over an image's labels."""
    scores, targets, unknown = checked
    positives = known_positives(targets, unknown)
    if risk == "false_discovery_rate":
        losses = _mean_false_discoveries(scores, positives, unknown, grid)
        return _test(losses, len(scores), grid, alpha=alpha, delta=delta)
    counts = np.diff(positives.indptr)
    images = int((counts > 0).sum())
    held = scores[rows_of(positives)].astype(np.float64)
    shares = np.repeat(1 / np.maximum(counts, 1), counts)
    if delta is None:
        return _highest(held, shares, images, alpha)
    ascending = grid[::-1]
    missed = np.bincount(np.searchsorted(ascending, held, "right"), weights=shares, minlength=len(grid) + 1)
    losses = np.cumsum(missed[:-1]) / max(images, 1)
    return _test(losses, images, ascending, alpha=alpha, delta=delta, trivial=EVERYTHING)


def _highest(held: np.ndarray, shares: np.ndarray, images: int, alpha: float) -> Chosen:
    """Return the highest threshold at which (sum of losses + 1) / (images + 1) is at most alpha.

    Args:
        held: The scores (P,) of what holds.
        shares: (P,) what missing each adds to the sum of losses.
        images: How many there are.
        alpha: The risk allowed.
    """
    order = np.argsort(held, kind="stable")
    held, shares = held[order], shares[order]
    # With the threshold at the score of an entry, all that is lower is missed.
    first = np.flatnonzero(np.append(True, held[1:] > held[:-1])) if len(held) else np.zeros(0, dtype=np.int64)
    missed = np.concatenate([[0.0], np.cumsum(shares)])[first]
    room = alpha * (images + 1) - 1
    # Sums of rounded shares, and alpha itself, may lie a last digit off.
    good = np.flatnonzero(missed <= room + 1e-9 * max(room, 1))
    if not len(good):
        return EVERYTHING, False, 0.0 if images else np.nan, images
    return held[first[good[-1]]], True, missed[good[-1]] / images, images


def _mean_false_discoveries(
    scores: np.ndarray, positives: sp.csr_array, unknown: sp.csr_array | None, grid: np.ndarray
) -> np.ndarray:
    """Return the mean over images of the share of wrong ones among what is decided, at each threshold (G,)."""
    total, width = np.zeros(len(grid)), len(grid) + 1
    ascending = grid[::-1]
    for start, stop in blocks(len(scores), max(1, _ENTRIES // max(width, scores.shape[1]))):
        place = np.searchsorted(ascending, scores[start:stop], "right")
        place += np.arange(stop - start)[:, None] * width
        rows, columns = rows_of(positives, start, stop)
        right = np.bincount(place[rows, columns], minlength=(stop - start) * width)
        if unknown is not None:
            place[rows_of(unknown, start, stop)] = (stop - start) * width
        decided = np.bincount(place.ravel(), minlength=(stop - start) * width)[: (stop - start) * width]
        decided, right = (
            np.cumsum(each.reshape(-1, width)[:, :0:-1], axis=1, dtype=np.int64) for each in (decided, right)
        )
        total += ((decided - right) / np.maximum(decided, 1)).sum(axis=0)
    return total / max(len(scores), 1)


def _test(
    losses: np.ndarray,
    images: int,
    grid: np.ndarray,
    *,
    alpha: float,
    delta: float | None,
    trivial: float = NOTHING,
) -> Chosen:
    """Return the last threshold, from the safe end, up to which every hypothesis of a risk above alpha is rejected."""
    p_values = hoeffding_bentkus(losses, images, alpha)
    passed = int(np.argmin(np.append(p_values <= (delta or 0.0), False)))
    if passed == 0:
        return trivial, False, 0.0 if images else np.nan, images
    return grid[passed - 1], True, losses[passed - 1], images


def hoeffding_bentkus(risk: Any, images: int, alpha: float) -> np.ndarray:
    """Return p-values of the hypothesis that a mean of losses in [0, 1] is above `alpha`.

    The smaller of exp(-n h(min(r, alpha), alpha)), h being the relative entropy of two coins, and e times the
    probability that Binomial(n, alpha) is at most ceil(n r); 1 where there are no images.

    Args:
        risk: Mean losses r over n independent images, an array.
        images: n.
        alpha: The risk allowed.

    Reference: Bates, Angelopoulos, Lei, Malik and Jordan (2021), "Distribution-free, risk-controlling prediction sets".

    Example:
        >>> hoeffding_bentkus([0.0, 0.1], 100, 0.1).round(6)
        array([2.7e-05, 1.0e+00])
    """
    mean = np.asarray(risk, dtype=np.float64)
    if not images:
        return np.ones(mean.shape)
    low = np.minimum(mean, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        present = np.where(low > 0, low * np.log(low / alpha), 0.0)
        absent = (1 - low) * np.log((1 - low) / (1 - alpha))
    # Sums of rounded shares may lie a last digit above a whole number, which is then meant.
    below = np.ceil(images * mean - 1e-9 * np.maximum(images * mean, 1))
    return np.minimum(1.0, np.minimum(np.exp(-images * (present + absent)), np.e * binom.cdf(below, images, alpha)))


def _of_labels(checked: Checked, grid: np.ndarray, risk: str, alpha: float, delta: float | None) -> Chosen:
    """Return what is chosen for each label of a block by its own images, whose losses are 0 or 1; arrays (w,)."""
    scores, targets, unknown = checked
    positives = sp.csr_array(known_positives(targets, unknown).T)
    rows, images = rows_of(positives)
    held = scores[images, rows].astype(np.float64)
    counts = np.diff(positives.indptr)
    if risk == "false_negative_rate" and delta is None:
        parts = np.split(held, positives.indptr[1:-1])
        found = [_highest(each, np.ones(len(each)), len(each), alpha) for each in parts]
    else:
        found = _tested_labels(scores, unknown, (rows, held), counts, grid, risk=risk, alpha=alpha, delta=delta)
    values, reached, estimates, numbers = (np.array(each) for each in zip(*found, strict=True))
    return values, reached, estimates, numbers


def _tested_labels(
    scores: np.ndarray,
    unknown: sp.csr_array | None,
    held: tuple[np.ndarray, np.ndarray],
    counts: np.ndarray,
    grid: np.ndarray,
    *,
    risk: str,
    alpha: float,
    delta: float | None,
) -> list[Chosen]:
    """Return what is chosen for each label by the exact binomial test."""
    width, num_labels = len(grid) + 1, len(counts)
    ascending = grid[::-1]
    rows, values = held
    right = np.bincount(np.searchsorted(ascending, values, "right") + rows * width, minlength=num_labels * width)
    right = np.cumsum(right.reshape(num_labels, width)[:, :0:-1], axis=1)  # (w, G), thresholds descending
    if risk == "false_negative_rate":
        wrong, total, trivial = (counts[:, None] - right)[:, ::-1], np.broadcast_to(counts[:, None], right.shape), 0.0
        order = ascending
    else:
        place = np.searchsorted(ascending, scores, "right") + np.arange(num_labels) * width
        if unknown is not None:
            place[rows_of(unknown)] = num_labels * width
        decided = np.bincount(place.ravel(), minlength=num_labels * width)[: num_labels * width]
        total = np.cumsum(decided.reshape(num_labels, width)[:, :0:-1], axis=1)
        wrong, trivial, order = total - right, NOTHING, grid
    good = binom.cdf(wrong, total, alpha) <= (delta or 0.0)
    fewest = 1 if risk == "false_negative_rate" else int(np.ceil(np.log(delta) / np.log1p(-alpha))) if delta else 1
    if risk == "false_discovery_rate":
        good |= total < fewest  # too few to reject anything: passed over
    passed = np.argmin(np.append(good, np.zeros((num_labels, 1), dtype=bool), axis=1), axis=1)
    result: list[Chosen] = []
    for row, last in enumerate((passed - 1).tolist()):
        images = int(total[row, last])
        if last < 0 or images < fewest:
            result.append((trivial, False, 0.0 if counts[row] else np.nan, int(counts[row])))
        else:
            result.append((order[last], True, wrong[row, last] / images, images))
    return result


def _as_levels(levels: Any) -> np.ndarray:
    """Return the grid of thresholds, descending."""
    if levels is None:
        return 1 / (1 + np.exp(-np.linspace(1, -1, 999) * np.log(9999)))
    held = np.unique(np.array(to_numpy(levels), dtype=np.float64).ravel())[::-1]
    if not len(held) or not ((held > 0) & (held < 1)).all():
        raise ValueError(f"levels must be thresholds above 0 and below 1; got {levels!r}")
    return held


def check_open(value: float, what: str) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{what} must be above 0 and below 1; got {value!r}")
