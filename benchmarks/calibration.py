"""Calibration and guarantees on real data: what scores say, and what holds on images that nothing was fitted to.

A head is trained on features as in `benchmarks.imbalance`, with losses that do and do not bias its probabilities. Maps
are fitted on the validation part and measured on the test part. For the guarantees, validation and test part are dealt
out anew `--resamplings` times into calibration images and others, on which the risk is measured.

    python -m benchmarks.calibration --data FOLDER --features FOLDER [--quick]

`--quick` trains for a few steps on made-up features.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from benchmarks.imbalance import Method, Problem, Split, made_up, problems, train
from mlabel.decisions import control_risk, fit_calibration, fit_conformal_sets, logits_of, undo_loss
from mlabel.labels import LabelSpace
from mlabel.metrics import brier_score, expected_calibration_error, log_loss
from mlabel.weights import class_weights

METHODS = (
    Method("cross-entropy"),
    Method("focal", loss="focal"),
    Method("asymmetric", loss="asymmetric"),
    Method("pos_weight", weighting="neg_pos"),
)
RATE, STEPS, QUICK_STEPS = 1e-3, 600, 20
CALIBRATION_IMAGES = 500


def calibrated(method: Method, split: Split, val: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each calibration and the probabilities (N, L) that it gives the test part."""
    space, targets = split.table.space, split.targets(split.val)
    yield "as they are", test
    fitted, applied = logits_of(val, space), logits_of(test, space)
    weight = None
    if method.weighting is not None:
        counts, known = split.table.counts, split.table.known_counts
        weight = class_weights(counts, known, scheme=method.weighting, space=space)
    if space.any_of.any():
        yield "loss undone", undo_loss(method.loss, space, pos_weight=weight).apply(applied)
        yield (
            "temperature, one",
            fit_calibration(fitted, targets, "temperature", scope="global", space=space).apply(applied),
        )
        for name in ("platt", "beta", "isotonic"):
            for shrinkage in (0.0, 10.0):
                found = fit_calibration(fitted, targets, name, space=space, shrinkage=shrinkage)
                yield f"{name}, shrinkage {shrinkage:g}", found.apply(applied)
    else:
        for name, shrinkage in (("temperature", 0.0), ("vector", 0.0), ("vector", 10.0)):
            found = fit_calibration(fitted, targets, exclusive=name, space=space, shrinkage=shrinkage)
            yield f"{name}, shrinkage {shrinkage:g}", found.apply(applied)


def show_calibration(problem: Problem, methods: tuple[Method, ...], steps: int) -> tuple[Split, np.ndarray, np.ndarray]:
    """Print how good probabilities are; return the split and the first method's scores of validation and test part."""
    split = problem.split(0)
    first = None
    targets = split.targets(split.test)
    print(f"\n{problem.name}\n")
    print("| loss | calibration | ECE, pooled | ECE, mean of labels | Brier | log loss |\n|---|---|---|---|---|---|")
    for method in methods:
        _, val, test = train(method, split, seed=0, rate=RATE, steps=steps)
        first = (val, test) if first is None else first
        for name, scores in calibrated(method, split, val, test):
            held = np.clip(scores, 0, 1)
            pooled = expected_calibration_error(held, targets, average="micro")
            each = expected_calibration_error(held, targets)
            figures = f"{pooled:.4f} | {each:.4f} | {brier_score(held, targets):.4f} | {log_loss(held, targets):.4f}"
            print(f"| {method.name} | {name} | {figures} |", flush=True)
    assert first is not None
    return split, *first


def show_guarantees(split: Split, val: np.ndarray, test: np.ndarray, resamplings: int) -> None:
    """Print what was promised and what came of it."""
    space, scores = split.table.space, np.vstack([val, test])
    targets = sp.csr_array(sp.vstack([split.targets(split.val), split.targets(split.test)], format="csr"))
    dense, rng = targets.toarray().astype(bool), np.random.default_rng(0)
    draws = [rng.permutation(len(scores)) for _ in range(resamplings)]
    if space.any_of.any():
        for risk, alpha, delta in (
            ("false_negative_rate", 0.1, None),
            ("false_negative_rate", 0.1, 0.1),
            ("false_discovery_rate", 0.3, 0.1),
        ):
            found = []
            for draw in draws:
                few, rest = draw[:CALIBRATION_IMAGES], draw[CALIBRATION_IMAGES:]
                control = control_risk(scores[few], targets[few], alpha, risk=risk, delta=delta, space=space)
                found.append(_risk(control.decide(scores[rest]), dense[rest], risk))
            _say(f"{risk} <= {alpha}, delta {delta}", np.array(found), alpha)
    for group in space.exclusive_groups:
        for method, scope in (("lac", "marginal"), ("aps", "marginal"), ("aps", "class")):
            _show_sets(space, scores, dense, draws, group=group.name, method=method, scope=scope)


def _show_sets(
    space: LabelSpace,
    scores: np.ndarray,
    dense: np.ndarray,
    draws: list[np.ndarray],
    *,
    group: str,
    method: str,
    scope: str,
) -> None:
    span, missed, sizes = space.slices[group], [], []
    for draw in draws:
        few, rest = draw[:CALIBRATION_IMAGES], draw[CALIBRATION_IMAGES:]
        options = {"method": method, "scope": scope, "group": group, "space": space}
        sets = fit_conformal_sets(scores[few], dense[few], 0.1, **options).predict(scores[rest])
        known = dense[rest, span].any(axis=1)
        missed.append(1 - (sets & dense[rest, span]).any(axis=1)[known].mean())
        sizes.append(sets.sum(axis=1).mean())
    _say(
        f"{group}: {method} by {scope}, sets of {np.mean(sizes):.2f} of {dense[:, span].shape[1]}",
        np.array(missed),
        0.1,
    )


def _risk(decisions: np.ndarray, held: np.ndarray, risk: str) -> float:
    if risk == "false_negative_rate":
        rows = held.any(axis=1)
        return float(((held & ~decisions).sum(axis=1)[rows] / held.sum(axis=1)[rows]).mean())
    return float(((decisions & ~held).sum(axis=1) / np.maximum(decisions.sum(axis=1), 1)).mean())


def _say(what: str, risks: np.ndarray, alpha: float) -> None:
    error = risks.std() / np.sqrt(len(risks))
    print(
        f"{what}: mean {risks.mean():.4f} +- {2 * error:.4f}, above alpha in {(risks > alpha).mean():.1%}", flush=True
    )


def main(quick: bool, data: Path | None, features: Path | None, resamplings: int, wanted: str | None) -> None:
    """Print the figures of each data set."""
    if quick:
        held: list[Problem] = [made_up()]
    elif data is None or features is None:
        raise SystemExit("--data (or MLABEL_DATA) and --features are needed, but with --quick")
    else:
        held = [each for each in problems(data, features) if wanted in (None, each.name)]
    for problem in held:
        any_of = problem.table.space.any_of.any()
        shown = show_calibration(problem, METHODS if any_of else METHODS[:1], QUICK_STEPS if quick else STEPS)
        show_guarantees(*shown, resamplings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLABEL_DATA"))
    parser.add_argument("--features", type=Path)
    parser.add_argument("--resamplings", type=int, default=1000)
    parser.add_argument("--only", help="this data set: mirflickr14, danbooru or fashion")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    main(options.quick, options.data, options.features, options.resamplings, options.only)
