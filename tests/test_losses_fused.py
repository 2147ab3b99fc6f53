"""What the fused sum rests on: positions of positives found by words, scratch memory that is used again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel.losses import Loss, asymmetric
from mlabel.losses.fused import _nonzero
from mlabel.losses.kernels import Scratch


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 7),
    columns=st.integers(1, 19),
    share=st.floats(0, 1),
    offset=st.integers(0, 3),
    dtype=st.sampled_from([torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.int64]),
)
def test_what_is_not_0_is_found_wherever_it_lies(rows, columns, share, offset, dtype):
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    # Cut off somewhere, the matrix begins at any address and need not lie in one piece.
    whole = (torch.rand(rows + offset, columns + offset, generator=generator) < share).to(dtype)
    targets = whole[offset:, offset:]
    np.testing.assert_array_equal(_nonzero(targets), torch.nonzero(targets.reshape(-1)).reshape(-1).numpy())


def test_scratch_memory_is_used_again_and_grows():
    scratch = Scratch()
    first, second = scratch.like(torch.zeros(2, 3), 2)
    assert first.shape == second.shape == (2, 3)
    assert first.data_ptr() != second.data_ptr()
    assert scratch.like(torch.zeros(5), 1)[0].data_ptr() == first.data_ptr()
    assert scratch.like(torch.zeros(4, 4), 3)[2].shape == (4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_left_as_they_are(dtype):
    logits = torch.randn(4, 9, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = logits.detach().clone()
    Loss(asymmetric)(logits, (torch.arange(36).reshape(4, 9) % 11 == 0).to(torch.uint8)).backward()
    assert torch.equal(logits.detach(), before)
