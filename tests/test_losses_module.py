"""`Loss`, `PerGroup` and foreign losses: mask, weights, reductions, parts, and what they refuse."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlabel.labels import Group, LabelSpace
from mlabel.losses import (
    BatchLoss,
    ForeignLoss,
    Loss,
    PerGroup,
    as_loss,
    asymmetric,
    binary_cross_entropy,
    cross_entropy,
    focal,
    focal_cross_entropy,
    seesaw,
    total,
    two_way,
    zlpr,
)

SPACE = LabelSpace(
    [
        Group("tags", ["cat", "dog", "bird"]),
        Group("rating", ["safe", "other"], exclusive=True),
        Group("size", ["small", "middle", "large"], exclusive=True),
    ]
)
TAGS = LabelSpace([Group("tags", ["cat", "dog", "bird"])])
RATING = LabelSpace([Group("rating", ["safe", "middle", "other"], exclusive=True)])


def per_element(logits, targets):
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def batch(rows=8, columns=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)
    targets = (torch.rand(rows, columns, generator=generator) < 0.3).to(torch.uint8)
    known = torch.rand(rows, columns, generator=generator) < 0.7
    return logits, targets, known


def group_batch(rows=8, seed=0, dtype=torch.float64):
    """Return logits, targets and mask of `SPACE`: a third of the exclusive groups' rows are unknown."""
    rng = np.random.default_rng(seed)
    logits, targets, known = batch(rows, SPACE.num_labels, seed, dtype)
    for group in SPACE.exclusive_groups:
        span = SPACE.slices[group.name]
        targets[:, span] = torch.from_numpy(np.eye(len(group), dtype=np.uint8)[rng.integers(len(group), size=rows)])
        known[:, span] = torch.from_numpy(rng.random(rows) < 0.67)[:, None]
    targets[~known] = 0
    return logits, targets, known


def value_and_gradient(loss, logits, *rest):
    x = logits.clone().requires_grad_()
    value = loss(x, *rest)
    return value.detach(), torch.autograd.grad(value, x)[0]


def group_losses():
    """Return a `PerGroup` of each kind of part."""
    return [
        PerGroup(SPACE, {"tags": asymmetric, "rating": cross_entropy, "size": Loss(cross_entropy, weight=[1, 2, 3])}),
        PerGroup(
            SPACE,
            {"tags": per_element, "rating": nn.CrossEntropyLoss(), "size": partial(F.cross_entropy, reduction="none")},
            scale={"rating": 0.5, "size": 0.0},
        ),
        PerGroup(
            SPACE,
            {
                "tags": Loss(focal, reduction="sum"),
                "rating": Loss(partial(cross_entropy, smoothing=0.1), reduction="batchmean"),
                "size": Loss(cross_entropy, reduction="sum"),
            },
        ),
    ]


@pytest.mark.parametrize("density", [0.05, 0.9])
def test_pos_weight_is_torchs(density):
    x, t, _ = batch(rows=30)
    t = (torch.rand(t.shape) < density).to(torch.uint8)
    pos_weight = torch.tensor([0.5, 2.0, 7.0])
    for targets in (t, 0.3 * t):
        wanted = F.binary_cross_entropy_with_logits(x, targets.double(), pos_weight=pos_weight.double())
        for reduction in ("mean", "none"):
            loss = Loss(binary_cross_entropy, pos_weight=pos_weight, reduction=reduction)
            torch.testing.assert_close(loss(x, targets).mean(), wanted)


@pytest.mark.parametrize("loss", group_losses(), ids=["own", "foreign", "reductions"])
@given(seed=st.integers(0, 999), cut=st.integers(0, 8))
@settings(max_examples=8, deadline=None)
def test_parts_of_two_batches_make_the_whole(loss, seed, cut):
    x, t, known = group_batch(seed=seed)
    for mask in (known, None):
        if mask is None:  # every row has a class
            t = t.clone()
            t[:, 3], t[:, 4], t[:, 5:] = 1, 0, torch.tensor([0, 1, 0])
        pieces = [(x[:cut], t[:cut], None if mask is None else mask[:cut])]
        pieces.append((x[cut:], t[cut:], None if mask is None else mask[cut:]))
        torch.testing.assert_close(total(*(loss.parts(*piece) for piece in pieces)), loss(x, t, mask))
        parts = loss.parts(x, t, mask)
        assert list(parts) == ["tags", "rating", "size"]
        assert loss.denominators(t, mask) == {name: part[1] for name, part in parts.items()}


def test_per_group_is_the_sum_of_its_groups():
    x, t, known = group_batch()
    loss = PerGroup(SPACE, {"tags": Loss(focal), "rating": cross_entropy, "size": cross_entropy}, scale={"size": 3.0})
    rows = {name: known[:, span.start] for name, span in SPACE.slices.items()}
    wanted = focal(x[:, :3], t[:, :3])[known[:, :3]].mean()
    for name, scale in (("rating", 1.0), ("size", 3.0)):
        span = SPACE.slices[name]
        classes = t[:, span].double().argmax(dim=1)
        wanted = wanted + scale * F.cross_entropy(x[:, span][rows[name]], classes[rows[name]])
    torch.testing.assert_close(loss(x, t, known), wanted)


def test_groups_may_have_losses_of_any_kind():
    x, t, known = group_batch()
    counts = {"counts": [50, 9, 1]}
    size = Loss(partial(seesaw, **counts))
    loss = PerGroup(SPACE, {"tags": two_way, "rating": focal_cross_entropy, "size": size}, scale={"tags": 2.0})
    parts = loss.parts(x, t, known)
    assert list(parts) == ["tags/samples", "tags/labels", "rating", "size"]
    assert loss.denominators(t, known) == {name: part[1] for name, part in parts.items()}
    spans = SPACE.slices.values()
    losses = [Loss(two_way), Loss(focal_cross_entropy), size]
    each = [part(x[:, span], t[:, span], known[:, span]) for part, span in zip(losses, spans, strict=True)]
    torch.testing.assert_close(loss(x, t, known), 2 * each[0] + each[1] + each[2])
    assert list(PerGroup(TAGS, {"tags": zlpr}).parts(*(a[:, :3] for a in (x, t, known)))) == ["tags"]


def test_groups_take_index_lists():
    x, t, known = group_batch()
    lists = [row.nonzero()[:, 0].tolist() for row in t]
    for loss in group_losses():
        torch.testing.assert_close(value_and_gradient(loss, x, lists, known), value_and_gradient(loss, x, t, known))
        assert loss.denominators(lists, known) == loss.denominators(t, known)
        assert loss.denominators(lists) == loss.denominators(t)
    foreign = ForeignLoss(per_element)
    assert foreign.denominators([[0], []], num_labels=4) == {"all": 8}
    assert ForeignLoss(nn.CrossEntropyLoss(), exclusive=True).denominators([[0], []]) == {"all": 1}
    with pytest.raises(ValueError, match="give num_labels="):
        foreign.denominators([[0], []])


def test_foreign_losses_equal_ours():
    x, t, known = group_batch()
    own = PerGroup(SPACE, {"tags": binary_cross_entropy, "rating": cross_entropy, "size": cross_entropy})
    for tags, classes in (
        (per_element, nn.CrossEntropyLoss()),
        (nn.BCEWithLogitsLoss(reduction="none"), F.cross_entropy),
    ):
        foreign = PerGroup(SPACE, {"tags": tags, "rating": classes, "size": classes})
        dirty = x.masked_fill(~known, torch.nan)
        torch.testing.assert_close(value_and_gradient(foreign, dirty, t, known), value_and_gradient(own, x, t, known))


def test_what_a_foreign_loss_is_given():
    seen = {}

    def spy(name, shape):
        def fn(logits, targets):
            seen[name] = (logits.dtype, tuple(logits.shape), targets.dtype, tuple(targets.shape))
            return logits.sum(dim=1) if shape == "rows" else logits * 1.0

        return fn

    x, t, known = group_batch(dtype=torch.bfloat16)
    loss = PerGroup(SPACE, {"tags": spy("tags", "all"), "rating": spy("rating", "rows"), "size": spy("size", "rows")})
    count = int(known[:, 3].sum())
    loss(x, t, known)
    assert seen["tags"] == (torch.float32, (8, 3), torch.float32, (8, 3))
    assert seen["rating"] == (torch.float32, (count, 2), torch.int64, (count,))
    soft = t.float()
    soft[known[:, 3], 3:5] = torch.tensor([0.25, 0.75])
    loss(x, soft, known)
    assert seen["rating"] == (torch.float32, (count, 2), torch.float32, (count, 2))
    seen.clear()
    nothing = known.clone()
    nothing[:, 3:] = False
    assert loss.parts(x, t, nothing)["rating"] == (0, 0)
    assert "rating" not in seen  # with no known row it is not called


def test_an_exclusive_group_without_a_class_is_unknown():
    x, t, _ = batch(columns=3)
    t[:] = torch.tensor([0, 1, 0])
    t[2] = 0
    keep = torch.arange(8) != 2
    for loss in (Loss(cross_entropy), ForeignLoss(nn.CrossEntropyLoss(), exclusive=True)):
        for targets in (t, sp.csr_array(t.numpy())):
            torch.testing.assert_close(loss(x, targets), loss(x[keep], t[keep]))
            assert loss.parts(x, targets)["all"][1] == loss.denominators(targets)["all"] == 7
            everything = torch.ones(8, 3, dtype=torch.bool)  # a mask that forgets it does not make it class 0
            torch.testing.assert_close(loss(x, targets, everything), loss(x[keep], t[keep]))
    torch.testing.assert_close(
        Loss(cross_entropy)(x, torch.ones(8, dtype=torch.int64)), F.cross_entropy(x, t[:1].argmax(1).expand(8))
    )
    classes, known = torch.ones(8, dtype=torch.int64), torch.arange(8) > 3
    torch.testing.assert_close(Loss(cross_entropy)(x, classes, known), F.cross_entropy(x[4:], classes[4:]))


def test_class_weights_divide_by_rows():
    x = torch.zeros(4, 2)
    loss = Loss(cross_entropy, weight=[1.0, 3.0])
    assert loss(x, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(2 * np.log(2))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss(reduction="none"), per_element])
def test_as_loss_takes_a_users_own(loss):
    x, t, known = batch()
    for space in (TAGS, LabelSpace([Group("a", ["cat"]), Group("b", ["dog", "bird"])])):
        found = as_loss(loss, space)
        assert isinstance(found, BatchLoss)
        torch.testing.assert_close(found(x, t), loss(x, t.double()).mean())
        parts = found.parts(x, t)
        torch.testing.assert_close(total(parts), found(x, t))
        if loss is per_element:
            wanted = binary_cross_entropy(x, t)[known].mean()
            torch.testing.assert_close(found(x, t, known), wanted)
            torch.testing.assert_close(found(x.masked_fill(~known, torch.nan), t, sp.csr_array(~known.numpy())), wanted)
        else:
            with pytest.raises(ValueError, match="entries of the batch are unknown"):
                found(x, t, known)
            torch.testing.assert_close(found(x, t, known | True), found(x, t))


def test_as_loss_over_a_mixed_space_gives_the_whole_matrix():
    x, t, known = group_batch()
    found = as_loss(per_element, SPACE)
    torch.testing.assert_close(found(x, t, known), binary_cross_entropy(x, t)[known].mean())


def test_as_loss_of_one_exclusive_group():
    x, t, _ = batch()
    t[:] = torch.tensor([0, 0, 1])
    for loss in (nn.CrossEntropyLoss(), cross_entropy, Loss(cross_entropy)):
        torch.testing.assert_close(as_loss(loss, RATING)(x, t), F.cross_entropy(x, torch.full((8,), 2)))


def test_as_loss_leaves_ours_as_they_are():
    several = LabelSpace([Group("a", ["cat"]), Group("b", ["dog", "bird"])])
    loss, groups = Loss(focal), group_losses()[0]
    assert as_loss(loss, several) is loss
    assert as_loss(groups, SPACE) is groups
    assert as_loss(as_loss(per_element, SPACE), SPACE).fn is per_element
    assert isinstance(as_loss(partial(focal, gamma=1.0), several), Loss)


def test_modules_move_copy_and_pickle():
    x, t, known = group_batch()
    for loss in [*group_losses(), Loss(partial(focal, alpha=[0.1] * 8), weight=2.0)]:
        wanted = loss(x, t, known)
        assert torch.equal(copy.deepcopy(loss)(x, t, known), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(loss))(x, t, known), wanted)  # noqa: S301
    module = PerGroup(RATING, {"rating": nn.CrossEntropyLoss(weight=torch.ones(3))})
    assert len(module.state_dict()) == 1
    assert "asymmetric(gamma_neg=2.0), reduction='mean'" in repr(Loss(partial(asymmetric, gamma_neg=2.0)))
    assert "scale={'rating': 1.0}" in repr(module)


def test_parameters_of_a_foreign_loss_are_trained():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, logits, targets):
            return self.factor * per_element(logits, targets)

    loss = as_loss(Learned(), TAGS)
    (parameter,) = loss.parameters()
    loss(*batch()).backward()
    assert parameter.grad != 0


def test_empty_batches():
    x, t, known = (a[:0] for a in group_batch())
    for loss in group_losses():
        assert loss(x, t, known) == 0
        assert loss(x, t) == 0


def test_the_gradient_takes_one_buffer():
    """The slopes are what autograd hands on: no second copy is made of them."""
    x = torch.zeros(4, 5, requires_grad=True)
    value = Loss(asymmetric)(x, torch.eye(4, 5))
    node = value.grad_fn
    while "WeightedSum" not in node.name():
        node = node.next_functions[0][0]
    held = node.slope.data_ptr()
    assert torch.autograd.grad(value, x)[0].data_ptr() == held


def test_compiled_it_is_the_plain_formula():
    x, t, known = batch()
    for loss in (Loss(asymmetric, pos_weight=[1.0, 2.0, 3.0]), Loss(focal, weight=2.0)):
        compiled = torch.compile(loss, backend="eager", fullgraph=True)
        torch.testing.assert_close(value_and_gradient(compiled, x, t, known), value_and_gradient(loss, x, t, known))


def test_float16_gradients_do_not_vanish():
    """A mean's gradient below float16's smallest number survives a scaler's factor."""
    x = torch.zeros(100, 2000, dtype=torch.float16, requires_grad=True)
    targets = torch.zeros(100, 2000)
    targets[7, 5] = 1.0
    gradient = torch.autograd.grad(Loss(binary_cross_entropy)(x, targets) * 65536.0, x)[0]
    wanted = (0.5 - targets) * 65536 / 200_000
    torch.testing.assert_close(gradient.float(), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Loss(focal, reduction="man"), ValueError, "unknown reduction 'man'; did you mean 'mean'"),
        (lambda: Loss(nn.BCEWithLogitsLoss), TypeError, "fn must be a function"),
        (lambda: Loss(focal, weight=[1.0, -1.0]), ValueError, "weight must be finite numbers of at least 0"),
        (lambda: Loss(focal, pos_weight=[torch.nan]), ValueError, "pos_weight must be finite"),
        (lambda: Loss(cross_entropy, pos_weight=[1.0]), ValueError, "no positive term"),
        (lambda: PerGroup(SPACE, {"tags": focal}), ValueError, r"\['rating', 'size'\] have none"),
        (lambda: PerGroup(TAGS, {"tag": focal}), ValueError, "unknown group 'tag'; did you mean 'tags'"),
        (lambda: PerGroup(TAGS, {"tags": focal}, scale={"x": 1.0}), ValueError, "unknown group 'x'"),
        (lambda: PerGroup(TAGS, {"tags": focal}, scale={"tags": -1.0}), ValueError, "scale of group 'tags'"),
        (lambda: PerGroup(TAGS, {"tags": cross_entropy}), ValueError, "group 'tags' is any-of"),
        (lambda: PerGroup(RATING, {"rating": focal}), ValueError, "group 'rating' is exclusive"),
        (lambda: PerGroup(RATING, {"rating": zlpr}), ValueError, "use cross_entropy, focal_cross_entropy or seesaw"),
        (lambda: Loss(two_way, reduction="none"), ValueError, "two_way is a mean over rows and one over labels"),
        (lambda: Loss(partial(zlpr, gamma=1.0)), TypeError, "unexpected keyword argument 'gamma'"),
        (lambda: Loss(partial(focal_cross_entropy, gamma=-1.0)), ValueError, "gamma must be"),
        (lambda: PerGroup(TAGS, {"tags": Loss(focal, reduction="none")}), ValueError, "must be reduced"),
        (lambda: PerGroup(TAGS, {"tags": nn.BCEWithLogitsLoss}), TypeError, r"Call it: BCEWithLogitsLoss\(\)"),
        (lambda: PerGroup(TAGS, {"tags": 3}), TypeError, "must be a module or a function"),
        (lambda: as_loss("focal", TAGS), TypeError, "losses.create"),
        (lambda: as_loss(Loss(focal), SPACE), ValueError, "give each its own with PerGroup"),
        (lambda: as_loss(Loss(focal), RATING), ValueError, "exclusive"),
        (lambda: as_loss(group_losses()[0], TAGS), ValueError, "the label space of the loss is another one"),
    ],
)
def test_what_cannot_work_is_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, t: Loss(focal)(x, t[:, :2]), ValueError, r"the shape of the logits, \(8, 3\); got \(8, 2\)"),
        (lambda x, t: Loss(focal)(x, t, t), TypeError, "a dense mask must be bool"),
        (lambda x, t: Loss(focal)(x, t, t[:3].bool()), ValueError, r"mask must be of shape \(8, 3\)"),
        (
            lambda x, t: Loss(focal)(x, t.tolist()),
            ValueError,
            "index lists hold each label of a row once; row 0 holds 0",
        ),
        (
            lambda x, t: Loss(focal)(x, {0: [1]}),
            TypeError,
            "targets must be a torch tensor, .* or index lists; got dict",
        ),
        (lambda x, t: group_losses()[0](x, [[8]] * 8), ValueError, r"the space has 8 labels; got shape \(8, 3\)"),
        (lambda x, t: Loss(focal)(x, t.long() - 1), ValueError, "got -1 at row 0, column 0. What is unknown"),
        (lambda x, t: Loss(focal)(x, sp.csr_array(2 * t.numpy())), ValueError, r"targets must be in \[0, 1\]; got 2"),
        (lambda x, t: Loss(focal, weight=[1.0, 2.0])(x, t), ValueError, r"weights are of shape \(2,\)"),
        (lambda x, t: Loss(focal, reduction="none").parts(x, t), ValueError, "no sum and denominator"),
        (lambda x, t: Loss(lambda a, b: (a - b).mean())(x, t), ValueError, "must give a loss for each entry"),
        (lambda x, t: Loss(lambda a, b: 3)(x, t), ValueError, "got int"),
        (lambda x, t: group_losses()[0](x, t), ValueError, r"the space has 8 labels; got shape \(8, 3\)"),
        (lambda x, t: ForeignLoss(lambda a, b: 3)(x, t), TypeError, "must return a tensor; got int"),
        (
            lambda x, t: ForeignLoss(lambda a, b: a[:2])(x, t),
            ValueError,
            r"a value an entry \(8, 3\); got shape \(2, 3\)",
        ),
        (lambda x, t: ForeignLoss(lambda a, b: a, exclusive=True)(x, t), ValueError, "a scalar or a value a row"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shapes(call, error, message):
    x, t, _ = batch(dtype=torch.float32)
    t[0] = torch.tensor([0, 1, 0])
    with pytest.raises(error, match=message):
        call(x, t)
