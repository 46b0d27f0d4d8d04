import math
from fractions import Fraction

import pytest
import torch

from recall_lightning.merging.functional.sums import WeightedSums
from recall_lightning.weights.chunks import chunk_size

HALF = [(torch.bfloat16, 7, -126, 1e-38), (torch.float16, 10, -14, 1e-7)]
STEP = chunk_size(torch.device("cpu"))


def summed(tensors, weights, dtype, most=None):
    chunks = WeightedSums(dtype, most=most).chunks(tensors, weights)
    return torch.cat([chunk.clone() for chunk in chunks])


def nearest(exact, mantissa, least):
    """Round a fraction to the grid of a floating-point format, ties to even."""
    exponent = math.frexp(float(exact))[1] - 1 if exact else 0
    spacing = Fraction(2) ** (max(exponent, least) - mantissa)
    return float(round(exact / spacing) * spacing)


@pytest.mark.parametrize(("dtype", "mantissa", "least", "tiny"), HALF)
@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.25, 0.75), (0.618034, 0.381966), (0.5000001, 0.4999999)]
)
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_two_tensors_of_half_precision_are_summed_correctly(
    dtype, mantissa, least, tiny, shares, spread
):
    for scale in (1, tiny):
        first = (torch.randn(1000) * scale).to(dtype)
        second = (first.float() * (1 + spread * torch.randn(1000))).to(dtype)
        exact = [
            Fraction(shares[0]) * Fraction(a) + Fraction(shares[1]) * Fraction(b)
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ]
        found = summed([first, second], shares, dtype).tolist()
        assert found == [nearest(value, mantissa, least) for value in exact]


@pytest.mark.parametrize(("dtype", "mantissa", "least", "tiny"), HALF)
def test_so_are_three_and_weights_that_do_not_sum_to_one(dtype, mantissa, least, tiny):
    shares = (0.7182818, -0.3141593, 1.4142136)
    tensors = [(torch.randn(2000) * tiny ** (i / 2)).to(dtype) for i in range(3)]
    exact = [
        sum(Fraction(w) * Fraction(x) for w, x in zip(shares, values, strict=True))
        for values in zip(*(t.tolist() for t in tensors), strict=True)
    ]
    found = summed(tensors, shares, dtype).tolist()
    assert found == [nearest(value, mantissa, least) for value in exact]


@pytest.mark.parametrize("most", [1, 63, 64, 100, 1000, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_size_of_chunks_changes_nothing(dtype, most):
    tensors = [torch.randn(7, 143).to(dtype) for _ in range(2)]
    weights = [0.3, 0.7]
    assert torch.equal(summed(tensors, weights, dtype, most), summed(tensors, weights, dtype))


@pytest.mark.parametrize("count", [0, 1, 63, 65, STEP - 1, STEP + 65, 4 * STEP + 1])
def test_sizes_around_the_chunks_boundaries(count):
    first = torch.randn(count).bfloat16()
    second = (first.float() * 1.01).bfloat16()
    chunks = list(WeightedSums(torch.bfloat16).chunks([first, second], [0.5, 0.5]))
    assert sum(len(chunk) for chunk in chunks) == count
    if count:
        expected = ((first.double() + second.double()) / 2).bfloat16()  # exact in float64
        assert torch.equal(summed([first, second], [0.5, 0.5], torch.bfloat16), expected)


def test_a_chunk_lasts_until_the_one_after_the_next_is_asked_for():
    sums = WeightedSums(torch.bfloat16, most=64)
    tensors = [torch.arange(256.0).bfloat16(), torch.zeros(256).bfloat16()]
    kept = None
    for chunk in sums.chunks(tensors, [0.6, 0.4]):
        if kept is not None:
            assert torch.equal(kept[0], kept[1])
        kept = chunk, chunk.clone()


def test_a_weight_may_be_a_tensor():
    tensors = [torch.ones(2, 3), torch.zeros(2, 3)]
    found = summed(tensors, [torch.tensor([[0.25], [0.5]]), 1.0], torch.float32)
    assert found.tolist() == [0.25] * 3 + [0.5] * 3


def test_equal_tensors_of_float64_come_back_bit_for_bit():
    tensor = torch.randn(1000, dtype=torch.float64)
    assert torch.equal(summed([tensor] * 3, [0.1, 0.2, 0.7], torch.float64), tensor)


def test_a_difference_beyond_float32_is_no_infinite_sum():
    first = torch.full((128,), 3e38, dtype=torch.bfloat16)
    found = summed([first, -first], [0.7, 0.3], torch.bfloat16)
    assert torch.equal(found, (first.double() * 0.4).bfloat16())
