"""The shared checks: every accepted form gives one form, no input is changed, errors name the place."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mlabel._checks import DataError, _csr_of_dense, as_csr, as_scores, as_unknown, resolve, to_numpy
from mlabel._files import read_json, to_json, write_atomically

DENSE = np.array([[0, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize("make", [np.array, torch.tensor, sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_as_csr_gives_one_form(make) -> None:
    source = make(DENSE.tolist()) if make is torch.tensor else make(DENSE)
    found = as_csr(source, shape=(2, 3))
    assert found.format == "csr"
    assert found.dtype == np.uint8
    assert found.has_canonical_format
    assert np.array_equal(found.toarray(), DENSE)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (7, 5), (300, 2)])
def test_as_csr_of_dense_is_scipys(dtype: type, shape: tuple[int, int]) -> None:
    dense = (np.random.default_rng(0).random(shape) < 0.4).astype(dtype)
    expected = sp.csr_array(dense.astype(np.uint8))
    for held in (dense, np.asfortranarray(dense), np.repeat(dense, 2, axis=0)[::2]):
        before = held.copy()
        found = as_csr(held)
        for name in ("data", "indices", "indptr"):
            assert getattr(found, name).dtype == getattr(expected, name).dtype
            assert np.array_equal(getattr(found, name), getattr(expected, name))
        found.data[:] = 0
        assert np.array_equal(held, before)


def test_as_csr_drops_stored_zeros_and_leaves_its_input_alone() -> None:
    source = sp.csr_array((np.array([0, 1, 1]), np.array([2, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    before = (source.data.copy(), source.indices.copy(), source.indptr.copy())
    assert as_csr(source).nnz == 2
    for kept, now in zip(before, (source.data, source.indices, source.indptr), strict=True):
        assert np.array_equal(kept, now)


@pytest.mark.parametrize("value", [2, 0.5, -1, np.nan])
@pytest.mark.fault(17)
def test_as_csr_names_row_and_column_of_a_wrong_value(value: float) -> None:
    wrong = DENSE.astype(float)
    wrong[1, 2] = value
    with pytest.raises(ValueError, match="at row 1, column 2"):
        as_csr(wrong)
    if value == 0.5:
        assert as_csr(wrong, soft=True).toarray()[1, 2] == 0.5
    else:
        with pytest.raises(ValueError, match="at row 1, column 2"):
            as_csr(wrong, soft=True)


@pytest.mark.fault(17)
def test_as_csr_refuses_other_shapes_and_text() -> None:
    with pytest.raises(ValueError, match=r"of shape \(2, 4\); got \(2, 3\)"):
        as_csr(DENSE, shape=(2, 4))
    with pytest.raises(ValueError, match=r"\(N, L\)"):
        as_csr([1, 0])
    with pytest.raises(ValueError, match="numbers"):
        as_csr([["a"]])
    duplicated = sp.coo_array((np.array([1, 1]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 3))
    with pytest.raises(ValueError, match="got 2 at row 0, column 1"):
        as_csr(duplicated)


def test_as_unknown_reads_both_forms_alike() -> None:
    unknown = sp.csr_array(np.array([[True, False], [False, False]]))
    for form in (unknown, ~unknown.toarray(), torch.from_numpy(~unknown.toarray())):
        found = as_unknown(form, (2, 2))
        assert found is not None
        assert np.array_equal(found.toarray(), unknown.toarray())
    assert as_unknown(None, (2, 2)) is None
    assert as_unknown(np.ones((2, 2), dtype=bool), (2, 2)) is None
    with pytest.raises(TypeError, match="must be bool"):
        as_unknown(np.ones((2, 2)), (2, 2))
    for form in (unknown, ~unknown.toarray()):
        with pytest.raises(ValueError, match="must be of shape"):
            as_unknown(form, (3, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.fault(18)
def test_as_scores_counts_and_places_what_is_not_finite(bad: float) -> None:
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[1, 2] = scores[2, 0] = bad
    with pytest.raises(ValueError, match="2 entries are not, the first at row 1, column 2"):
        as_scores(scores)
    assert as_scores(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == np.float32
    assert as_scores(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(ValueError, match=r"\(N, L\)"):
        as_scores(np.zeros(3))


def test_to_numpy_refuses_sparse() -> None:
    with pytest.raises(TypeError, match="sparse"):
        to_numpy(sp.csr_array(DENSE))


def test_resolve_lists_and_suggests() -> None:
    assert resolve("b", {"a": 1, "b": 2}, "letter") == 2
    with pytest.raises(ValueError, match="unknown loss 'fcal'; did you mean 'focal'"):
        resolve("fcal", {"focal": 1, "asymmetric": 2}, "loss")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlabel._files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_json_errors_name_the_file(tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"a\.json: not JSON"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        read_json(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("nan"))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.int64])
def test_sparse_copies_have_the_type_of_the_whole(kind: type) -> None:
    dense = np.array([[0, 1, 0], [1, 1, 0]]).astype(kind)
    found = _csr_of_dense(dense)
    assert found.dtype == kind
    np.testing.assert_array_equal(found.toarray(), dense)
    assert as_unknown(dense == 0, dense.shape).dtype == bool
