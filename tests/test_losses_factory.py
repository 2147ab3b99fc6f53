"""`create`: the table of names, groups, weights and options."""

import inspect
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mlabel import losses
from mlabel.labels import Group, LabelSpace
from mlabel.losses import (
    EXCLUSIVE_NAMES,
    NAMES,
    Loss,
    PerGroup,
    asymmetric,
    binary_cross_entropy,
    create,
    functional,
    options_of,
)
from mlabel.weights import SCHEMES, class_weights, count_labels

TAGS = Group("tags", ["cat", "dog", "bird"])
RATING = Group("rating", ["safe", "middle", "other"], exclusive=True)
ANY_OF, MIXED, EXCLUSIVE = LabelSpace([TAGS]), LabelSpace([TAGS, RATING]), LabelSpace([RATING])


def data(space, rows=40, seed=0):
    """Return logits, targets (CSR) and unknowns (CSR) of a space."""
    rng = np.random.default_rng(seed)
    names = []
    for _ in range(rows):
        held = [name for name, rate in zip(TAGS.labels, (0.6, 0.3, 0.1), strict=True) if rng.random() < rate]
        rating = [str(rng.choice(RATING.labels, p=[0.7, 0.2, 0.1]))] if rng.random() < 0.8 else []
        names.append([name for name in held + rating if name in space])
    targets, unknown = space.encode(names)
    return torch.from_numpy(rng.normal(size=targets.shape)), targets, unknown


def settings_of(fn, targets, unknown, span):
    """Return the counts that a function takes, of some columns."""
    counts, known = count_labels(targets, unknown)
    given = {"counts": counts[span], "num_samples": known[span]}
    return {name: value for name, value in given.items() if name in inspect.signature(fn).parameters}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("space", "weighting", "exclusive_loss"),
    [
        (space, weighting, None)
        for space in (ANY_OF, MIXED, EXCLUSIVE)
        for weighting in (None, *SCHEMES)
        if (space, weighting) != (EXCLUSIVE, "neg_pos")  # refused, see test_messages
    ]
    + [(MIXED, weighting, name) for weighting in (None, "effective_number") for name in EXCLUSIVE_NAMES],
    ids=str,
)
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_every_name_serves_every_space(name, space, weighting, exclusive_loss, reduction):
    x, targets, unknown = data(space)
    loss = create(
        name,
        space=space,
        targets=targets,
        unknown=unknown,
        weighting=weighting,
        reduction=reduction,
        cap=50.0,
        exclusive_loss=exclusive_loss,
    )
    assert isinstance(loss, Loss if space is ANY_OF else PerGroup)
    weights = torch.ones(space.num_labels)
    if weighting:
        counts, known = count_labels(targets, unknown)
        weights = torch.from_numpy(class_weights(counts, known, scheme=weighting, cap=50.0, space=space)).float()
    t = torch.from_numpy(targets.toarray()).double()
    wanted = torch.zeros((), dtype=torch.float64)
    if space is not EXCLUSIVE:
        fn = binary_cross_entropy if name == "cross_entropy" else getattr(losses, name)
        fn = partial(fn, **settings_of(fn, targets, unknown, slice(0, 3)))
        wanted += Loss(fn, pos_weight=weights[:3], reduction=reduction)(x[:, :3], t[:, :3])
    if space is not ANY_OF:
        fn = getattr(losses, exclusive_loss or "cross_entropy")
        fn = partial(fn, **settings_of(fn, targets, unknown, slice(-3, None)))
        known = t[:, -3:].sum(dim=1) > 0
        weight = None if weighting in (None, "neg_pos") else weights[-3:]
        rows = fn(x[known, -3:], t[known, -3:], weight=weight)
        wanted += rows.sum() / {"mean": len(rows), "batchmean": len(x), "sum": 1}[reduction]
    torch.testing.assert_close(loss(x, targets, unknown), wanted)


def test_the_tables_are_complete():
    made = {fn.__name__ for fn in functional.ELEMENTWISE | functional.PER_SAMPLE}
    assert set(NAMES) == made | {"cross_entropy"}
    assert set(EXCLUSIVE_NAMES) == {fn.__name__ for fn in functional.OVER_CLASSES}
    assert all(hasattr(losses, name) for name in (*NAMES, *EXCLUSIVE_NAMES))


def test_a_loss_of_exclusive_groups_by_its_name():
    x, targets, unknown = data(EXCLUSIVE)
    for name in EXCLUSIVE_NAMES:
        found = create(name, space=EXCLUSIVE, targets=targets)
        named = create("focal", space=EXCLUSIVE, targets=targets, exclusive_loss=name)
        assert found(x, targets, unknown) == named(x, targets, unknown)
        assert found.losses[0].formula.__name__ == name


def test_options_reach_their_function():
    x, targets, _ = data(ANY_OF)
    t = torch.from_numpy(targets.toarray())
    loss = create("asymmetric", space=ANY_OF, options={"gamma_neg": 1.0, "clip": 0.2})
    torch.testing.assert_close(loss(x, t), asymmetric(x, t, gamma_neg=1.0, clip=0.2).mean())
    mixed = create("cross_entropy", space=MIXED, options={"smoothing": 0.3})
    assert mixed.losses[0].options == {}
    assert mixed.losses[1].options == {"smoothing": 0.3}
    assert options_of("focal") == {"gamma": 2.0, "alpha": None}
    assert options_of("cross_entropy") == {"smoothing": 0.0}
    assert options_of("splc") == {"tau": 0.6, "start_epoch": 1, "margin": 1.0, "gamma": 2.0}
    assert options_of("two_way") == {"temperature_pos": 4.0, "temperature_neg": 1.0}
    assert options_of("seesaw") == {"p": 0.8, "q": 2.0, "floor": 0.01}
    assert set(options_of("distribution_balanced")) == {"alpha", "beta", "mu", "lamb", "kappa", "gamma"}
    both = create("focal", space=MIXED, exclusive_loss="focal_cross_entropy", options={"gamma": 1.5, "smoothing": 0.1})
    assert both.losses[0].options == {"gamma": 1.5}
    assert both.losses[1].options == {"gamma": 1.5, "smoothing": 0.1}


def test_counts_are_of_what_is_known():
    _, targets, _ = data(MIXED)
    unknown = sp.csr_array(np.tile([True, False, False, False, False, False], (40, 1)))
    loss = create("distribution_balanced", space=MIXED, targets=targets, unknown=unknown, exclusive_loss="seesaw")
    counts, _ = count_labels(targets, unknown)
    np.testing.assert_array_equal(loss.losses[0].options["counts"], counts[:3])
    np.testing.assert_array_equal(loss.losses[0].options["num_samples"], [0, 40, 40])
    np.testing.assert_array_equal(loss.losses[1].options["counts"], counts[3:])
    assert repr(loss.losses[1]).startswith("Loss(seesaw(counts=[")
    many = LabelSpace([Group("tags", [f"tag{number}" for number in range(500)])])
    shown = repr(create("distribution_balanced", space=many, targets=sp.csr_array((9, 500), dtype=np.uint8)))
    assert shown.startswith("Loss(distribution_balanced(counts=<500 values>, num_samples=<500 values>)")


def test_weights_go_to_the_positive_term():
    _, targets, _ = data(ANY_OF)
    loss = create("focal", space=ANY_OF, targets=targets, weighting="effective_number")
    assert loss.weight is None
    assert loss.pos_weight.mean().item() == pytest.approx(1.0)
    assert loss.pos_weight[2] > loss.pos_weight[0]  # birds are rarer than cats


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fokal"}, "unknown loss 'fokal'; did you mean 'focal'"),
        ({"options": {"gama": 1}}, "unknown option of focal 'gama'; did you mean 'gamma'? Known: alpha, gamma"),
        ({"options": {"gamma": -1.0}}, "gamma must be"),
        ({"weighting": "neg_pos"}, "weighting='neg_pos' counts labels: give the training part's targets="),
        ({"name": "distribution_balanced"}, "distribution_balanced counts labels: give the training part's targets="),
        ({"name": "seesaw", "space": EXCLUSIVE}, "seesaw counts labels"),
        (
            {"name": "seesaw"},
            "'seesaw' is a loss of exclusive groups, .* one of absolute_error, .*_loss='seesaw'",
        ),
        ({"exclusive_loss": "seesaw"}, "exclusive_loss='seesaw' is for exclusive groups, and the space has none"),
        (
            {"exclusive_loss": "seasaw", "space": MIXED},
            "unknown exclusive loss 'seasaw'; did you mean 'seesaw'?",
        ),
        (
            {"name": "seesaw", "exclusive_loss": "cross_entropy", "space": EXCLUSIVE},
            "both 'seesaw' and exclusive_los",
        ),
        ({"options": {"smoothing": 0.1}}, "unknown option of focal 'smoothing'; Known: alpha, gamma"),
        ({"options": {"gama": 1}, "space": MIXED}, "unknown option of focal and cross_entropy 'gama'; did you mean"),
        ({"name": "splc", "options": {"epoch": 1}}, "unknown option of splc 'epoch'"),
        ({"name": "distribution_balanced", "options": {"lamb": 0}, "targets": data(ANY_OF)[1]}, "lamb must be"),
        ({"exclusive_loss": "focal_cross_entropy", "space": MIXED, "options": {"smoothing": 2}}, "smoothing must be"),
        ({"weighting": "rare", "targets": data(ANY_OF)[1]}, "unknown scheme 'rare'"),
        ({"weighting": "neg_pos", "targets": data(MIXED)[1]}, "targets have 6 columns, but the space has 3"),
        ({"weighting": "neg_pos", "targets": data(EXCLUSIVE)[1], "space": EXCLUSIVE}, "exclusive groups only"),
        ({"reduction": "avg"}, "unknown reduction 'avg'"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        create(**{"name": "focal", "space": ANY_OF} | arguments)


def test_unknown_entries_do_not_enter_the_weights():
    _, targets, _ = data(ANY_OF)
    unknown = sp.csr_array(np.tile([True, False, False], (40, 1)))
    known = create("focal", space=ANY_OF, targets=targets, unknown=unknown, weighting="inverse_frequency")
    counts, samples = count_labels(targets[:, [1, 2]])
    wanted = class_weights(counts, samples, scheme="inverse_frequency")
    np.testing.assert_allclose(known.pos_weight[1:], wanted, rtol=1e-6)
