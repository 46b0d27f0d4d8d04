import pytest
import torch

from recall_lightning.merging.functional.operands import (
    check_models,
    check_shares,
    rounded,
    working_dtype,
)


def test_one_model_is_enough():
    check_models([torch.ones(2)], [-1.5])


@pytest.mark.parametrize("weights", [[0, 1], [0.2, 0.3], [5.0]])
def test_shares_need_no_sum(weights):
    check_shares(weights)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32], torch.float32),
        ([torch.bfloat16, torch.float64], torch.float64),
    ],
)
def test_half_precision_is_computed_in_float32_and_double_in_double(dtypes, expected):
    assert working_dtype([torch.ones(1, dtype=dtype) for dtype in dtypes]) == expected


def test_rounding_is_to_nearest_even():
    values = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])
    assert rounded(values, torch.ones(1, dtype=torch.bfloat16)).tolist() == [1, 1 + 2**-6]
