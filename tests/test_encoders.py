"""Label spaces from data: tag lists and tables of categories."""

import pickle
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer, OneHotEncoder
from sklearn.utils import estimator_checks

from mlabel.encoders import MultiHeadEncoder, MultiHotEncoder

tags = st.sampled_from(["cat", "dog", "bird", "1girl", "été", "猫", "😀", "a,b", "=cmd", " x "])
samples = st.lists(st.lists(tags, max_size=6), min_size=1, max_size=12)
values = st.sampled_from(["red", "green", "blue", None])
tables = st.lists(st.tuples(values, values), min_size=1, max_size=12)

# scikit-learn's checks that do not feed a table of numbers. The others do (or skip themselves, as these encoders say
# that they take no two-dimensional array of numbers): a number is no tag, so they would only test that.
APPLICABLE = [
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_set_params,
    estimator_checks.check_valid_tag_types,
]


@pytest.mark.parametrize("encoder", [MultiHotEncoder(), MultiHeadEncoder()])
@pytest.mark.parametrize("check", APPLICABLE, ids=lambda check: check.__name__)
def test_scikit_learns_checks(encoder, check):
    check(type(encoder).__name__, encoder)


@pytest.mark.parametrize(
    ("encoder", "data"),
    [
        (MultiHotEncoder(min_count=1, max_labels=5, unknown="ignore"), [["cat", "dog"], ["dog"], []]),
        (MultiHeadEncoder(), [["a", "x"], ["b", "y"], ["a", "y"]]),
    ],
)
class TestManners:
    """What scikit-learn's checks test with numbers, with data that these encoders take."""

    def test_not_fitted(self, encoder, data):
        for call in (encoder.transform, encoder.encode, encoder.inverse_transform):
            with pytest.raises(NotFittedError):
                call(data)
        with pytest.raises(NotFittedError):
            encoder.get_feature_names_out()

    def test_fit_returns_self_and_leaves_parameters(self, encoder, data):
        fresh = clone(encoder)
        before = fresh.get_params()
        assert fresh.fit(data) is fresh
        assert fresh.get_params() == before

    def test_transform_changes_nothing(self, encoder, data):
        fitted = clone(encoder).fit(data)
        before = pickle.dumps(fitted)
        fitted.transform(data)
        assert pickle.dumps(fitted) == before

    def test_fitting_twice_is_fitting_once(self, encoder, data):
        fitted = clone(encoder).fit(data)
        wanted = fitted.transform(data).toarray()
        assert (fitted.fit(data).transform(data).toarray() == wanted).all()
        assert (clone(encoder).fit_transform(data).toarray() == wanted).all()

    def test_rows_do_not_see_each_other(self, encoder, data):
        fitted = clone(encoder).fit(data)
        whole = fitted.transform(data).toarray()
        assert (fitted.transform(data[::-1]).toarray() == whole[::-1]).all()
        assert (fitted.transform(data[1:2]).toarray() == whole[1:2]).all()

    def test_pickle_and_pipeline(self, encoder, data):
        fitted = make_pipeline(clone(encoder)).fit(data)
        again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
        assert (again.transform(data) != fitted.transform(data)).nnz == 0
        assert list(again[0].get_feature_names_out()) == list(fitted[0].space_.names)

    def test_targets_are_csr_uint8(self, encoder, data):
        targets = clone(encoder).fit_transform(data)
        assert isinstance(targets, sp.csr_array)
        assert targets.dtype == np.uint8
        assert targets.has_canonical_format

    def test_an_unknown_way_with_unknowns_is_refused(self, encoder, data):
        with pytest.raises(ValueError, match="unknown value of unknown= 'eror'; did you mean 'error'"):
            clone(encoder).set_params(unknown="eror").fit(data)


@given(data=samples)
@settings(max_examples=40, deadline=None)
def test_tags_come_back(data):
    if not any(data):
        return
    encoder = MultiHotEncoder().fit(data)
    targets, unknown, ignored = encoder.encode(data)
    assert encoder.inverse_transform(targets) == [sorted(set(sample)) for sample in data]
    assert unknown is None
    assert ignored == {}


@given(data=samples)
@settings(max_examples=40, deadline=None)
def test_without_limits_it_is_scikit_learns_binarizer(data):
    if not any(data):
        return
    encoder, binarizer = MultiHotEncoder().fit(data), MultiLabelBinarizer().fit(data)
    assert encoder.space_.names == tuple(binarizer.classes_)
    np.testing.assert_array_equal(encoder.transform(data).toarray(), binarizer.transform(data))
    np.testing.assert_array_equal(encoder.counts_, binarizer.transform(data).sum(axis=0))


@given(data=samples, min_count=st.integers(1, 3), max_labels=st.none() | st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_limits_keep_the_most_frequent(data, min_count, max_labels, seed):
    counts = Counter(tag for sample in data for tag in set(sample))
    if max(counts.values(), default=0) < min_count:
        return
    encoder = MultiHotEncoder(min_count=min_count, max_labels=max_labels).fit(data)
    frequent = sorted((tag for tag in counts if counts[tag] >= min_count), key=lambda tag: (-counts[tag], tag))
    kept = frequent[:max_labels]
    assert encoder.space_.names == tuple(sorted(kept))
    assert encoder.cut_ == {tag: count for tag, count in counts.items() if tag not in kept}
    encoded = encoder.encode(data)
    assert encoded.ignored == encoder.cut_
    np.testing.assert_array_equal(encoded.targets.sum(axis=0), encoder.counts_)
    order = np.random.default_rng(seed).permutation(len(data))
    assert MultiHotEncoder(min_count, max_labels).fit([data[row] for row in order]).space_ == encoder.space_


@pytest.mark.fault(13)
def test_never_seen_tags():
    data = [["cat", "dog"], ["dog"]]
    new = [["cat"], ["dgo", "dog"], ["dgo", "dgo"]]
    with pytest.raises(ValueError, match=r"sample 1: tag 'dgo' was not seen at fit .* did you mean 'dog'"):
        MultiHotEncoder().fit(data).transform(new)
    encoded = MultiHotEncoder(unknown="ignore").fit(data).encode(new)
    assert encoded.ignored == {"dgo": 2}
    np.testing.assert_array_equal(encoded.targets.toarray(), [[1, 0], [0, 1], [0, 0]])


def test_samples_may_be_gone_through_once():
    encoder = MultiHotEncoder()
    targets = encoder.fit_transform(iter([iter(["b", "a"]), iter(["b"])]))
    np.testing.assert_array_equal(targets.toarray(), [[1, 1], [0, 1]])
    np.testing.assert_array_equal(encoder.transform(iter([iter(["b"])])).toarray(), [[0, 1]])


@pytest.mark.fault(13)
def test_cut_tags_are_ignored_even_where_unseen_ones_are_errors():
    encoded = MultiHotEncoder(min_count=2).fit([["a", "b"], ["a"]]).encode([["a", "b"]])
    assert encoded.ignored == {"b": 1}
    np.testing.assert_array_equal(encoded.targets.toarray(), [[1]])


@pytest.mark.fault(14)
def test_spellings_of_one_name():
    composed, decomposed = "\u00e9", "e\u0301"
    encoder = MultiHotEncoder().fit([[decomposed], ["x"]])
    assert encoder.space_.names == ("x", composed)
    np.testing.assert_array_equal(encoder.transform([[composed], [decomposed]]).toarray(), [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"'\\xe9' and 'e\\u0301' are one name|'e\\u0301' and '\\xe9' are one name"):
        MultiHotEncoder().fit([[composed], [decomposed]])


@pytest.mark.parametrize(
    ("encoder", "data", "error", "message"),
    [
        (MultiHotEncoder(), ["cat"], TypeError, "sample 0 must be a list of tags; got the string 'cat'"),
        (MultiHotEncoder(), [["cat"], None], TypeError, "sample 1 must be a list of tags; got None"),
        (MultiHotEncoder(), [["cat", 3]], TypeError, "a tag must be a string; got 3"),
        (MultiHotEncoder(), [["a\nb"]], ValueError, "must not be empty nor hold a newline"),
        (MultiHotEncoder(), [[], []], ValueError, "no tag occurs in min_count=1 samples"),
        (MultiHotEncoder(min_count=3), [["a"], ["a"]], ValueError, "the most frequent one occurs in 2"),
        (MultiHotEncoder(min_count=0), [["a"]], ValueError, "min_count must be at least 1; got 0"),
        (MultiHotEncoder(max_labels=0), [["a"]], ValueError, "max_labels must be at least 1, or None; got 0"),
        (MultiHeadEncoder(), [], ValueError, "the table has no columns"),
        (MultiHeadEncoder(), {"a": ["x", "y"], "b": ["x"]}, ValueError, "columns must be of one length"),
        (MultiHeadEncoder(), [["x", "y"], ["x"]], ValueError, "row 1 has 1 values, and row 0 has 2"),
        (MultiHeadEncoder(), ["xy"], TypeError, "row 0 must be a list of values"),
        (MultiHeadEncoder(), [["x"], ["x"], [None]], ValueError, "column 'x0' needs at least two values"),
        (MultiHeadEncoder(), [["x"], [1.5]], TypeError, "row 1: column 'x0' must hold strings or integers"),
        (MultiHeadEncoder(), [["1"], [1]], ValueError, "different values of one name"),
    ],
)
def test_what_cannot_be_fitted(encoder, data, error, message):
    with pytest.raises(error, match=message):
        encoder.fit(data)


@given(data=tables)
@settings(max_examples=40, deadline=None)
def test_tables_come_back(data):
    if any(len({row[place] for row in data} - {None}) < 2 for place in (0, 1)):
        return
    encoder = MultiHeadEncoder().fit(data)
    targets, unknown, ignored = encoder.encode(data)
    assert [tuple(row) for row in encoder.inverse_transform(targets)] == data
    dense = targets.toarray() + (0 if unknown is None else unknown.toarray())
    missing = np.array([[value is None for value in row] for row in data])
    assert (unknown is None) == (not missing.any())
    for place, group in enumerate(encoder.space_.groups):
        sums = dense[:, encoder.space_.slices[group.name]].sum(axis=1)
        np.testing.assert_array_equal(sums, np.where(missing[:, place], len(group), 1))
    assert ignored == {}


def test_without_missing_values_it_is_scikit_learns_one_hot():
    rng = np.random.default_rng(0)
    data = np.column_stack([rng.choice(list("abc"), 50), rng.choice(list("xyzw"), 50)]).astype(object)
    encoder, reference = MultiHeadEncoder().fit(data), OneHotEncoder().fit(data)
    assert [list(column) for column in encoder.categories_] == [list(column) for column in reference.categories_]
    np.testing.assert_array_equal(encoder.transform(data).toarray(), reference.transform(data).toarray())
    np.testing.assert_array_equal(encoder.inverse_transform(encoder.transform(data)), data)


def test_forms_of_a_table():
    class Frame(dict):
        """What is used of a data frame: its columns by name."""

        columns = property(lambda self: list(self.keys()))

    rows = [["a", 2], ["b", 1], [None, 10]]
    columns = {"x0": ["a", "b", None], "x1": [2, 1, 10]}
    wanted = MultiHeadEncoder().fit(rows)
    assert wanted.categories_ == [("a", "b"), (1, 2, 10)]  # numbers in their own order
    assert wanted.n_features_in_ == 2
    for table in (columns, Frame(columns), np.array(rows, dtype=object), {"x0": ["a", "b", np.nan], "x1": [2, 1, 10]}):
        assert MultiHeadEncoder().fit(table).space_ == wanted.space_
        assert (MultiHeadEncoder().fit_transform(table) != wanted.transform(rows)).nnz == 0
    swapped = {"x1": [2, 1, 10], "x0": ["a", "b", None]}
    assert (wanted.transform(swapped) != wanted.transform(rows)).nnz == 0  # columns go by name
    assert wanted.inverse_transform(wanted.transform(rows)).tolist() == rows


def test_values_of_several_columns_carry_the_columns_name():
    encoder = MultiHeadEncoder().fit({"length": ["short", "none"], "neck": ["round", "none"]})
    assert encoder.space_.names == ("length:none", "short", "neck:none", "round")
    assert encoder.inverse_transform(np.array([[1, 0, 0, 1]])).tolist() == [["none", "round"]]


def test_never_seen_values():
    data = {"fit": ["tight", "loose"], "fabric": ["knit", "denim"]}
    new = {"fit": ["lose", "loose", None], "fabric": ["knit", "knit", "silk"]}
    with pytest.raises(ValueError, match=r"row 0: column 'fit' has 'lose', which was not seen .* did you mean 'loose'"):
        MultiHeadEncoder().fit(data).transform(new)
    targets, unknown, ignored = MultiHeadEncoder(unknown="ignore").fit(data).encode(new)
    np.testing.assert_array_equal(targets.toarray(), [[0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(unknown.toarray(), [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert ignored == {"fit:lose": 1, "fabric:silk": 1}


def test_other_columns_or_two_labels_of_a_group_are_refused():
    encoder = MultiHeadEncoder().fit({"fit": ["tight", "loose"]})
    with pytest.raises(ValueError, match=r"must have the columns \['fit'\]; got \['x0', 'x1'\]"):
        encoder.transform([["tight", "x"]])
    with pytest.raises(ValueError, match="a row has more than one label of the exclusive group 'fit'"):
        encoder.inverse_transform(np.array([[1, 1]]))
    with pytest.raises(ValueError, match="targets must have 2 columns; got 3"):
        encoder.inverse_transform(np.array([[1, 0, 0]]))
