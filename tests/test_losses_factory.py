"""`create`: the table of names, groups, weights and options."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from mlabel.labels import Group, LabelSpace
from mlabel.losses import NAMES, Loss, PerGroup, asymmetric, binary_cross_entropy, create, focal, options_of
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("space", "weighting"),
    [
        (space, weighting)
        for space in (ANY_OF, MIXED, EXCLUSIVE)
        for weighting in (None, *SCHEMES)
        if (space, weighting) != (EXCLUSIVE, "neg_pos")  # refused, see test_messages
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_every_name_serves_every_space(name, space, weighting, reduction):
    x, targets, unknown = data(space)
    loss = create(
        name, space=space, targets=targets, unknown=unknown, weighting=weighting, reduction=reduction, cap=50.0
    )
    assert isinstance(loss, Loss if space is ANY_OF else PerGroup)
    assert torch.isfinite(loss(x, targets, unknown))
    fn = {"asymmetric": asymmetric, "focal": focal}.get(name, binary_cross_entropy)
    weights = torch.ones(space.num_labels)
    if weighting:
        counts, known = count_labels(targets, unknown)
        weights = torch.from_numpy(class_weights(counts, known, scheme=weighting, cap=50.0, space=space)).float()
    t = torch.from_numpy(targets.toarray()).double()
    wanted = torch.zeros((), dtype=torch.float64)
    if space is not EXCLUSIVE:
        entries = fn(x[:, :3], t[:, :3]) * (1 + t[:, :3] * (weights[:3] - 1))
        wanted += entries.sum() / {"mean": entries.numel(), "batchmean": len(x), "sum": 1}[reduction]
    if space is not ANY_OF:
        x, t, weights = x[:, -3:], t[:, -3:], weights[-3:].double()
        known = t.sum(dim=1) > 0
        weight = None if weighting in (None, "neg_pos") else weights
        rows = F.cross_entropy(x[known], t[known], weight=weight, reduction="none")
        wanted += rows.sum() / {"mean": len(rows), "batchmean": len(x), "sum": 1}[reduction]
    torch.testing.assert_close(loss(data(space)[0], targets, unknown), wanted)


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
        ({"weighting": "neg_pos"}, "give the training part's targets="),
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
