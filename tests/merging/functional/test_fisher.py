import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.merging.functional import fisher

few = settings(max_examples=20, deadline=None)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
@few
def test_fisher_is_the_formula_for_models_in_any_order(seed, order):
    models, weights = [normal(seed + i, 4, 6) for i in range(3)], [0.5, 2.0, 1.0]
    fishers = [normal(seed + 20 + i, 4, 6).square() for i in range(3)]
    products = [w * f for w, f in zip(weights, fishers, strict=True)]
    expected = sum(p * m for p, m in zip(products, models, strict=True)) / sum(products)
    merged = fisher(*([items[i] for i in order] for items in (models, weights, fishers)))
    torch.testing.assert_close(merged, expected)


def test_entries_without_any_importance_are_averaged():
    models, none = [torch.tensor([0.0, 0.0]), torch.tensor([4.0, 4.0])], torch.zeros(2)
    assert fisher(models, [3, 1], [torch.tensor([0.0, 2.0]), none]).tolist() == [1, 0]


def test_the_smallest_importances_still_decide():
    models = [torch.tensor([0.0]), torch.tensor([1.0])]
    tiny = torch.tensor([1e-44])
    assert fisher(models, [1, 1], [torch.zeros(1), tiny]).item() == 1
    huge = torch.tensor([3e38])
    assert fisher(models, [1, 1], [huge, huge]).item() == 0.5


def test_a_weight_of_many_chunks_is_merged_whole():
    models = [normal(i, 3, 200_000, dtype=torch.bfloat16) for i in range(2)]
    ones = [torch.ones_like(model) for model in models]
    exact = (models[0].double() + models[1].double()) / 2
    assert torch.equal(fisher(models, [1, 1], ones), exact.float().bfloat16())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g: fisher(m, [1, 1], g[:1]), "importances has 1 entries for 2 models"),
        (lambda m, g: fisher(m, [1, 1], [g[0], -g[1]]), r"importances\[1\] holds negative"),
        (lambda m, g: fisher(m, [1, 1], [g[0], g[1] / 0]), r"importances\[1\] holds NaN"),
        (lambda m, g: fisher(m, [1, -1], g), r"weights=\[1, -1\] must not be negative"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call([torch.ones(2, 2)] * 2, [torch.eye(2)] * 2)
