"""Prior logits, biases that begin there, losses on adjusted logits, and the recipe's options for them."""

import csv
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from mlabel.labels import Group, LabelSpace
from mlabel.losses import NAMES, LogitAdjusted, as_loss, begin_epoch, create, total
from mlabel.models import HEADS, create_head, create_model
from mlabel.recipes import Recipe
from mlabel.recipes.imbalance import describe_labels, make_loss
from mlabel.training import TrainConfig
from mlabel.weights import SCHEMES, count_labels

SPACE = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "middle", "other"], exclusive=True)])
TAGS = LabelSpace([SPACE.groups[0]])
COUNTS, KNOWN = np.array([50, 4, 70, 20, 10]), np.array([100, 80, 100, 100, 100])
rated = arrays(np.int64, 3, elements=st.integers(1, 50))


def data(rows=12, seed=0):
    """Return logits, targets (CSR) and unknowns (CSR)."""
    rng = np.random.default_rng(seed)
    present = np.zeros((rows, 5), dtype=np.uint8)
    present[:, :2] = rng.random((rows, 2)) < 0.4
    present[np.arange(rows), 2 + rng.integers(0, 3, rows)] = 1
    unknown = np.zeros(present.shape, dtype=bool)
    unknown[:, :2] = rng.random((rows, 2)) < 0.2
    unknown[::5, 2:] = True
    present[unknown] = 0
    return torch.from_numpy(rng.normal(size=present.shape)), sp.csr_array(present), sp.csr_array(unknown)


# Prior logits


@given(tags=arrays(np.int64, 2, elements=st.integers(1, 99)), rating=rated)
@settings(max_examples=40, deadline=None)
def test_their_probabilities_are_the_shares(tags, rating):
    counts, known = np.concatenate([tags, rating]), np.array([100, 100, *[rating.sum()] * 3])
    logits = SPACE.prior_logits(counts, known)
    found = SPACE.probabilities(torch.from_numpy(logits)[None])[0]
    np.testing.assert_allclose(found, counts / known, rtol=1e-5)
    np.testing.assert_allclose(SPACE.prior_logits(10 * counts, 10 * known), logits)


def test_labels_that_never_or_always_hold_stay_finite():
    space = LabelSpace(
        [Group("tags", ["never", "always", "unknown", "once"]), Group("kind", ["a", "b"], exclusive=True)]
    )
    logits = space.prior_logits([0, 100, 0, 1, 0, 100], [100, 100, 0, 1, 100, 100])
    np.testing.assert_allclose(logits[:2], [np.log(0.5 / 99.5), np.log(99.5 / 0.5)])
    np.testing.assert_array_equal(logits[2:4], 0)
    np.testing.assert_allclose(logits[4:], np.log([0.5 / 100.5, 100 / 100.5]))
    np.testing.assert_allclose(space.prior_logits([0] * 6, 0)[4:], np.log(0.5))


# The bias of a head


@pytest.mark.parametrize("adjustment", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_begins_at_the_shares(name, adjustment):
    head = create_head(name, 6, SPACE)
    head.init_bias(COUNTS, KNOWN, logit_adjustment=adjustment)
    for layer in head.last_layers():
        nn.init.zeros_(layer.weight)
    logits = head(torch.randn(7, 6)).detach() + adjustment * torch.from_numpy(SPACE.prior_logits(COUNTS, KNOWN))
    wanted = np.broadcast_to(COUNTS / KNOWN, (7, 5))
    np.testing.assert_allclose(SPACE.probabilities(logits), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_nothing_but_the_bias_changes_and_every_column_has_one(name):
    head = create_head(name, 6, SPACE).bfloat16()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    assert sum(layer.out_features for layer in head.last_layers()) == SPACE.num_labels
    biases = {id(layer.bias) for layer in head.last_layers()}
    head.init_bias(COUNTS, KNOWN)
    for key, value in head.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[key]) != (id(value) in biases)
        assert value.dtype == before[key].dtype


def test_a_model_passes_it_on():
    model = create_model("small_cnn", SPACE, image_size=32)
    model.init_bias(torch.from_numpy(COUNTS), KNOWN)
    np.testing.assert_allclose(model.head.linear.bias.detach(), SPACE.prior_logits(COUNTS, KNOWN), rtol=1e-6)
    with pytest.raises(ValueError, match="counts are of 1 labels, but the space has 5"):
        model.init_bias([1], 2)
    with pytest.raises(ValueError, match="label 0 has 3 of 2"):
        model.init_bias([3, 0, 0, 0, 0], 2)


# The adjusted loss


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_loss_of_shifted_logits(name):
    x, targets, unknown = data()
    inner = create(name, space=SPACE, targets=targets, unknown=unknown)
    offset = np.linspace(-2, 1, 5).astype(np.float32)
    loss = LogitAdjusted(inner, offset)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, targets, unknown), x)
    shifted = (x + torch.from_numpy(offset)).detach().requires_grad_()
    value = inner(shifted, targets, unknown)
    torch.testing.assert_close(loss(x, targets, unknown), value)
    torch.testing.assert_close(gradient, torch.autograd.grad(value, shifted)[0])
    torch.testing.assert_close(LogitAdjusted(inner, np.zeros(5))(x, targets, unknown), inner(x, targets, unknown))


def test_batches_merge_and_training_takes_it():
    x, targets, unknown = data()
    loss = LogitAdjusted(create("focal", space=SPACE), SPACE.prior_logits(COUNTS, KNOWN))
    halves = [loss.parts(x[rows], targets[rows], unknown[rows]) for rows in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(total(*halves), loss(x, targets, unknown))
    denominators = {name: denominator for name, (_, denominator) in loss.parts(x, targets, unknown).items()}
    assert denominators == loss.denominators(targets, unknown)
    assert as_loss(loss, SPACE) is loss
    assert loss.double().offset.dtype == torch.float64


def test_index_lists_are_counted_with_the_labels_of_the_offset():
    x = data()[0][:3]
    lists = [[0, 2], [3], [1, 4]]
    plain = LogitAdjusted(as_loss(nn.BCEWithLogitsLoss(), SPACE), np.ones(5))
    (_, denominator) = plain.parts(x, lists)["all"]
    assert plain.denominators(lists)["all"] == denominator == 15


def test_the_loss_inside_is_told_its_epoch():
    x, targets, unknown = data()
    loss, inner = LogitAdjusted(create("splc", space=SPACE), np.ones(5)), create("splc", space=SPACE)
    values = []
    for epoch in (0, 1):
        begin_epoch(loss, epoch)
        begin_epoch(inner, epoch)
        values.append(loss(x, targets, unknown))
        torch.testing.assert_close(values[-1], inner(x + 1, targets, unknown))
    assert values[0] != values[1]


def test_half_precision_logits_are_adjusted_in_float32():
    x, targets, unknown = data()
    loss = LogitAdjusted(create("binary_cross_entropy", space=SPACE), SPACE.prior_logits(COUNTS, KNOWN))
    half = x.bfloat16().requires_grad_()
    torch.testing.assert_close(loss(half, targets, unknown), loss(half.float(), targets, unknown))
    assert torch.autograd.grad(loss(half, targets, unknown), half)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_without_an_image_to_look_at_the_least_loss_is_what_the_prior_leaves(tau):
    """A constant learns (1 - tau) x prior logits: nothing at tau = 1, where all labels are to weigh the same."""
    present = np.zeros((20, 5), dtype=np.uint8)
    present[:5, 0] = present[:1, 1] = present[:14, 2] = present[14:18, 3] = present[18:, 4] = 1
    wanted = SPACE.prior_logits(*count_labels(present))
    loss = LogitAdjusted(create("binary_cross_entropy", space=SPACE, reduction="sum"), tau * wanted)
    bias = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimiser.zero_grad()
        value = loss(bias.expand(20, 5), present)
        value.backward()
        return value

    optimiser.step(closure)
    found = bias.detach().numpy()
    found[2:] += (1 - tau) * wanted[2:].mean() - found[2:].mean()  # a softmax does not see a constant
    np.testing.assert_allclose(found, (1 - tau) * wanted, atol=1e-4)


def test_for_any_of_labels_it_is_a_bias_that_begins_at_the_prior():
    """Trained alike, the adjusted logits of the one are the logits of the other, step by step."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(40, 6)).astype(np.float32))
    present = (rng.random((40, 2)) < [0.4, 0.1]).astype(np.uint8)
    counts = present.sum(axis=0)
    offset = TAGS.prior_logits(counts, 40)
    plain = create("asymmetric", space=TAGS)
    logits = []
    for loss, tau in ((plain, 0.0), (LogitAdjusted(plain, offset), 1.0)):
        torch.manual_seed(0)
        head = create_head("mlp", 6, TAGS, hidden=8)
        head.init_bias(counts, 40, logit_adjustment=tau)
        optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
        for _ in range(20):
            optimiser.zero_grad()
            loss(head(features), present).backward()
            optimiser.step()
        logits.append(head(features).detach() + tau * torch.from_numpy(offset).float())
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-4)


def test_messages_of_the_adjusted_loss():
    inner = create("focal", space=SPACE)
    with pytest.raises(TypeError, match=r"got BCEWithLogitsLoss. Make it so with as_loss\(loss, space\)"):
        LogitAdjusted(nn.BCEWithLogitsLoss(), [0.0])
    for offset in (1.0, [[0.0]], [0.0, np.inf]):
        with pytest.raises(ValueError, match=r"offset must be finite numbers \(L,\)"):
            LogitAdjusted(inner, offset)
    with pytest.raises(ValueError, match=r"logits must be of shape \(N, 2\); got \(12, 5\)"):
        LogitAdjusted(inner, [0.0, 0.0])(*data())


# The recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of colours, of which green is rare and a kind often unknown."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    lines = ["image,tags,kind,part"]
    for number in range(40):
        held = rng.random(2) < (0.6, 0.2)
        pixels = rng.integers(0, 99, (8, 8, 3)) + 99 * np.append(held, False)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        tags = " ".join(name for name, is_held in zip(("red", "green"), held, strict=True) if is_held)
        kind = ("light", "dark", "")[number % 3]
        lines.append(f"{number}.png,{tags},{kind},{'val' if number % 4 == 0 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def command(folder, run, *more):
    reader = ["--reader", "csv", "--data", str(folder / "labels.csv")]
    for option in ("tags_column=tags", 'separator=" "', 'exclusive=["kind"]', "partition_column=part"):
        reader += ["--reader-option", option]
    model = ["--backbone", "small_cnn", "--image-size", "8", "--epochs", "1", "--lr", "1e-9", "--weight-decay", "0"]
    return ["train", *reader, *model, "--precision", "fp32", "--run", str(run), *more]


def test_a_run_begins_at_the_prior_adjusts_and_lists_the_weights(folder, tmp_path, caplog):
    from mlabel.cli import main
    from mlabel.recipes import Run

    options = ["--init-bias", "prior", "--logit-adjustment", "0.25", "--weighting", "power", "--verbose"]
    with caplog.at_level("INFO"):
        assert main(command(folder, tmp_path / "run", *options)) == 0
    assert "what was chosen for each label:\nname   group  positives" in caplog.text
    work = Run.open(tmp_path / "run")
    train = work.parts["train"]
    wanted = train.space.prior_logits(train.counts, train.known_counts)
    np.testing.assert_allclose(work.model.head.linear.bias.detach(), 0.75 * wanted, atol=1e-6)
    loss = make_loss(work.recipe, train)
    np.testing.assert_allclose(loss.offset, 0.25 * wanted, rtol=1e-6)
    with open(tmp_path / "run" / "weights.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert [int(rows[name]["positives"]) for name in train.space.names] == train.counts.tolist()
    assert [int(rows[name]["known"]) for name in train.space.names] == train.known_counts.tolist()
    tags, kind = loss.loss.losses
    weights = [float(rows[name]["weight"]) for name in train.space.names]
    np.testing.assert_allclose(np.concatenate([tags.pos_weight, kind.weight]), weights, rtol=1e-6)
    np.testing.assert_allclose([float(rows[name]["logit_offset"]) for name in train.space.names], 0.25 * wanted)


@pytest.mark.parametrize("weighting", [None, *SCHEMES])
def test_the_table_has_the_weights_of_the_loss(folder, weighting):
    from mlabel.recipes.run import read_table

    options = {"tags_column": "tags", "separator": " ", "exclusive": ["kind"], "partition_column": "part"}
    recipe = Recipe("csv", str(folder / "labels.csv"), reader_options=options, weighting=weighting)
    table = read_table(recipe)
    shown = describe_labels(recipe, table).columns["weight"]
    ones = torch.ones(2)
    held = [loss.weight if loss.over_classes else loss.pos_weight for loss in make_loss(recipe, table).losses]
    np.testing.assert_allclose(np.concatenate([ones if each is None else each for each in held]), shown, rtol=1e-6)


def test_the_recipe_checks_and_keeps_the_options():
    recipe = Recipe("mirflickr", "photographs", logit_adjustment=1.0, init_bias="prior")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(ValueError, match="unknown init_bias 'piror'; did you mean 'prior'"):
        Recipe("mirflickr", "photographs", init_bias="piror")
    with pytest.raises(ValueError, match="logit_adjustment must be between 0 and 10"):
        Recipe("mirflickr", "photographs", logit_adjustment=-1.0)
    with pytest.raises(ValueError, match="use one of the two"):
        Recipe("mirflickr", "photographs", logit_adjustment=1.0, train=TrainConfig(label_smoothing=0.1))
