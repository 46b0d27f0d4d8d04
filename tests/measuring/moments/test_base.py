import pytest
import torch

from recall_lightning.measuring.moments import FullMoments, LowRankMoments, RowCounts
from tests.support.moments import dense, of_low_rank, rows


@pytest.mark.parametrize(
    "make", [lambda x: of_low_rank(x, 6), lambda x: FullMoments(x.T @ x, torch.tensor(len(x)))]
)
def test_sums_and_multiples_are_those_of_the_matrices(make):
    one, other = rows(0), rows(1)
    both = make(one).scaled(2.0).plus(make(other))
    found = dense(both) if isinstance(both, LowRankMoments) else both.matrix
    torch.testing.assert_close(found, 2 * one.T @ one + other.T @ other, rtol=1e-4, atol=1e-3)
    assert float(both.count) == 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sums_are_float32_whatever_the_inputs_and_the_default_dtype(dtype):
    inputs, before = rows(0), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        full, low, counts = FullMoments.empty(6), LowRankMoments.empty(6, 2), RowCounts.empty(6)
    finally:
        torch.set_default_dtype(before)
    full.update(inputs.to(dtype))
    low.update(inputs.to(dtype))
    for tensor in (full.matrix, full.count, low.factor, low.diagonal, counts.counts):
        assert tensor.dtype is torch.float32


def test_no_input_and_inputs_that_are_not_finite_raise_nothing():
    empty = of_low_rank(torch.zeros(0, 6), 2, parts=1)
    assert float(empty.mean().diagonal.sum()) == 0
    broken = of_low_rank(torch.full((8, 6), torch.nan), 2)
    assert broken.diagonal.isnan().all()


@pytest.mark.parametrize("empty", [FullMoments.empty, lambda width: LowRankMoments.empty(width, 2)])
def test_moments_of_more_entries_are_those_of_inputs_with_zeros(empty):
    torch.manual_seed(0)
    rows = torch.randn(9, 4)
    moments, wider = empty(4), empty(6)
    moments.update(rows)
    wider.update(torch.nn.functional.pad(rows, (0, 2)))
    for name, tensor in wider.state_dict().items():
        found = moments.padded(6).state_dict()[name]
        pairs = (t.T @ t if name == "factor" else t for t in (found, tensor))
        torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("empty", [FullMoments.empty, lambda width: LowRankMoments.empty(width, 4)])
def test_moments_of_some_entries_are_those_of_inputs_without_the_others(empty):
    torch.manual_seed(0)
    rows, chosen = torch.randn(9, 4), torch.tensor([True, False, True, True])
    moments = empty(4)
    moments.update(rows)
    own = moments.of_inputs(chosen)
    expected = rows[:, chosen].T @ rows[:, chosen]
    found = own.matrix if isinstance(own, FullMoments) else own.factor.T @ own.factor
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own.diagonal, expected.diagonal())
