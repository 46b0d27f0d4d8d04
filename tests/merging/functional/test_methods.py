import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from recall_lightning.merging.coefficients.softmax import softmax_weights
from recall_lightning.merging.functional import METHODS, linear, method_named, recall, slerp

UNIT_ROUNDOFF = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24}
NOTHING_CUT = {"density": 1.0, "gamma": 0.0}


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_models(count=2, shape=(6, 4), dtype=torch.float32):
    return [normal(seed, *shape, dtype=dtype) for seed in range(count)]


def merge(name, models, weights=None, options=None):
    """Call any method on models, with what else it takes made up from their shape."""
    shape, count = models[0].shape, len(models)
    inputs = [normal(90 + i, 50, shape[-1] if shape else 1) for i in range(count)]
    made_up = {
        "weights": weights or [1 / count] * count,
        "base": normal(80, *shape, dtype=torch.bfloat16).to(models[0].dtype),
        "importances": [normal(70 + i, *shape).square() for i in range(count)],
        "moments": [x.T @ x for x in inputs],
        "similarity": weights or [1.0] * count,
        "name": "layer.weight",
        "model_keys": [f"model {i}" for i in range(count)],
    }
    options = options or {"density": 0.5, "gamma": 0.1}
    options = {key: value for key, value in options.items() if key in METHODS[name].options}
    return METHODS[name].function(
        models, **{key: made_up[key] for key in METHODS[name].inputs}, **options
    )


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_inputs_are_left_alone_and_the_result_is_a_tensor_of_its_own(name):
    models = some_models()
    merged = merge(name, models)
    assert all(torch.equal(a, b) for a, b in zip(models, some_models(), strict=True))
    assert all(merged.data_ptr() != model.data_ptr() for model in models)


@every_method
def test_a_trainable_model_gives_a_plain_tensor(name):
    models = [model.requires_grad_() for model in some_models()]
    assert not merge(name, models).requires_grad


@every_method
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_results_are_rounded_once_to_the_first_models_dtype(name, dtype):
    models = some_models(dtype=dtype)
    merged = merge(name, models)
    exact = merge(name, [model.double() for model in models])
    assert merged.dtype == dtype
    torch.testing.assert_close(merged.double(), exact, rtol=UNIT_ROUNDOFF[dtype] * 1.001, atol=3e-6)


@every_method
def test_models_of_two_dtypes_give_the_firsts(name):
    half, double = normal(0, 6, 4, dtype=torch.bfloat16), normal(1, 6, 4, dtype=torch.float64)
    assert merge(name, [half, double]).dtype == torch.bfloat16


@every_method
def test_a_transposed_model_merges_like_its_copy(name):
    models = [model.T for model in some_models(shape=(4, 6))]
    assert torch.equal(merge(name, models), merge(name, [m.contiguous() for m in models]))


@every_method
def test_equal_models_give_that_model(name):
    model = normal(0, 6, 4)
    weights = [1.0, 1.0] if name == "ties" else [0.3, 0.7]  # ties divides by the count
    merged = merge(name, [model, model], weights, NOTHING_CUT)
    torch.testing.assert_close(merged, model, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "fisher", "regmean", "recall"])
def test_equal_models_give_that_model_bit_for_bit(name):
    model = normal(0, 6, 4)
    assert torch.equal(merge(name, [model, model, model], [0.2, 0.5, 0.3]), model)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "regmean"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3)])
def test_tensors_of_one_entry_or_none_are_merged(name, shape):
    model = torch.full(shape, 0.5)
    merged = merge(name, [model, model], [1.0, 1.0] if name == "ties" else None, NOTHING_CUT)
    torch.testing.assert_close(merged, model)


@pytest.mark.parametrize("name", ["linear", "slerp", "fisher"])
def test_weights_1_0_return_the_first_model_bit_for_bit(name):
    models = some_models()
    assert torch.equal(merge(name, models, [1.0, 0.0]), models[0])


@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", ["linear", "recall"])
def test_the_order_of_models_changes_nothing(name, seed, order):
    models, weights = [normal(4 * seed + i, 5, 3) for i in range(4)], [0.4, 0.3, 0.2, 0.1]
    permuted = METHODS[name].function([models[i] for i in order], [weights[i] for i in order])
    torch.testing.assert_close(
        permuted, METHODS[name].function(models, weights), rtol=1e-7, atol=1e-7
    )


@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_slerp_the_other_way_round_is_the_same(seed, t):
    first, second = normal(seed, 7), normal(seed + 1, 7)
    there, back = slerp([first, second], [1 - t, t]), slerp([second, first], [t, 1 - t])
    torch.testing.assert_close(there, back, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_linear_agrees_with_peft(seed, count):
    models = [normal(9 * seed + i, 5, 3) for i in range(count)]
    weights = normal(seed, count).tolist()
    theirs = merge_utils.task_arithmetic(models, torch.tensor(weights))
    torch.testing.assert_close(linear(models, weights), theirs, rtol=1e-5, atol=1e-6)


def test_slerp_moves_evenly_along_the_arc():
    models = [torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [2.0]])]
    third = slerp(models, [2.0, 1.0]).flatten()
    angle = torch.atan2(third[1], third[0]).rad2deg()
    torch.testing.assert_close(angle, torch.tensor(30.0))
    torch.testing.assert_close(third.norm(), torch.tensor(2.0))


@pytest.mark.parametrize(
    "second",
    [[2.0, 2.02], [-1.0, -1.0], [0.0, 0.0]],
    ids=["nearly parallel", "opposite", "all zeros"],
)
def test_slerp_falls_back_to_linear(second):
    models = [torch.tensor([1.0, 1.0]), torch.tensor(second)]
    assert torch.equal(slerp(models, [0.7, 0.3]), linear(models, [0.7, 0.3]))


def test_slerp_of_nearly_parallel_models_differs_from_linear_as_little_as_it_says():
    models = [torch.tensor([1.0, 0.0]), torch.tensor([0.9995, (1 - 0.9995**2) ** 0.5])]
    arc = slerp(models, [0.5, 0.5], parallel_threshold=0.99999)
    distance = (arc - linear(models, [0.5, 0.5])).norm()
    assert 1e-5 < distance < 1.3e-4


def test_slerp_of_a_large_bfloat16_weight_finds_the_angle():
    models = [normal(i, 300_000, dtype=torch.bfloat16) for i in range(2)]
    merged = slerp(models, [0.5, 0.5])
    torch.testing.assert_close(
        merged.double().norm(), models[0].double().norm(), rtol=1e-2, atol=0.0
    )


def test_recall_is_the_softmax_average():
    models, similarity = some_models(3), [0.1, 0.7, 1.0]
    expected = linear(models, softmax_weights(similarity, 0.3))
    assert torch.equal(recall(models, similarity, temperature=0.3), expected)


def test_a_result_too_large_for_its_dtype_is_refused():
    with pytest.raises(ValueError, match=r"exceeds torch\.float16: lower"):
        linear([torch.full((2,), 6e4, dtype=torch.float16)] * 2, [1.0, 1.0])


@every_method
@pytest.mark.parametrize(
    ("models", "weights", "message"),
    [
        ([], [], "no model to merge"),
        ([torch.ones(2, 2), torch.ones(2, 3)], [1.0, 1.0], r"models\[1\] has the shape \(2, 3\)"),
        ([torch.ones(2, 2)] * 2, [1.0], r"has 1 entries for 2 models"),
        ([torch.ones(2, 2)] * 2, [1.0, float("nan")], r"\[1\]=nan must be a finite number"),
        ([torch.ones(2, 2), torch.ones(2, 2).int()], [1.0, 1.0], r"models\[1\] holds torch.int32"),
        (
            [torch.ones(2, 2), torch.tensor([[1.0, float("inf")]] * 2)],
            [1.0, 1.0],
            r"models\[1\] holds NaN or infinite",
        ),
    ],
    ids=["none", "shape", "count", "weight", "dtype", "finite"],
)
def test_unfit_models_and_weights_are_refused(name, models, weights, message):
    parameters = {key: models for key in ("importances", "moments") if key in METHODS[name].inputs}
    if "base" in METHODS[name].inputs:
        parameters["base"] = torch.ones(2, 2)
    if "density" in METHODS[name].options:
        parameters["density"] = 0.5
    if "gamma" in METHODS[name].options:
        parameters["gamma"] = 0.1
    with pytest.raises(ValueError, match=message):
        METHODS[name].function(models, weights, **parameters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: slerp(m * 2, [1.0] * 4), "exactly 2 models, not 4"),
        (lambda m: slerp(m, [1.0, -1.0]), "must not be negative"),
        (lambda m: slerp(m, [0.0, 0.0]), "not all 0"),
        (lambda m: slerp(m, [1.0, 1.0], parallel_threshold=1.0), r"threshold=1.0 must lie in"),
        (lambda m: recall(m, [1.0, 0.5], temperature=0.0), "temperature=0.0 must be a positive"),
        (
            lambda m: method_named("soup"),
            "method='soup' is unknown: use 'linear', 'slerp'",
        ),
    ],
)
def test_unfit_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(some_models())


def test_the_table_tells_inputs_from_options():
    assert METHODS["linear"].inputs == ("weights",)
    assert METHODS["ties"].inputs == ("weights", "base")
    assert METHODS["fisher"].inputs == ("weights", "importances")
    assert METHODS["regmean"].inputs == ("weights", "moments")
    assert set(METHODS["breadcrumbs"].options) == {"density", "gamma", "scale"}
    assert METHODS["dare"].options["seed"].default == 0
    assert METHODS["dare"].options["seed"].annotation is int
