import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.merging.kernels import lerp_, relative_drift


def weights(seed, dtype=torch.float32, size=50):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (size, 3), "b": (7,), "scalar": ()}
    return {n: torch.randn(shape, generator=generator).to(dtype) for n, shape in shapes.items()}


@given(weight=st.floats(0, 1), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_merging_equals_the_formula_in_float64(weight, seed):
    live, snapshot = weights(seed), weights(seed + 1)
    expected = {n: live[n].double() * (1 - weight) + snapshot[n].double() * weight for n in live}
    lerp_(live, snapshot, weight)
    for name in live:
        torch.testing.assert_close(live[name].double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equal_weights_stay_equal_bit_for_bit(dtype):
    live = weights(0, dtype)
    before = {name: tensor.clone() for name, tensor in live.items()}
    lerp_(live, before, 0.37)
    assert all(torch.equal(live[name], before[name]) for name in live)


@pytest.mark.parametrize(("weight", "winner"), [(0.0, 0), (1.0, 1)])
def test_the_ends_of_the_interval_return_one_side(weight, winner):
    sides = weights(0), weights(1)
    expected = {name: tensor.clone() for name, tensor in sides[winner].items()}
    lerp_(*sides, weight)
    assert all(torch.equal(sides[0][name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    live, snapshot = weights(0, dtype, size=200_000), weights(1, dtype, size=200_000)
    exact = {name: torch.lerp(live[name].float(), snapshot[name].float(), 0.3) for name in live}
    lerp_(live, snapshot, 0.3)
    assert all(torch.equal(live[name], exact[name].to(dtype)) for name in live)


def test_weights_by_name_and_by_element():
    live, snapshot = {"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.ones(2)}
    snapshot["b"] = torch.ones(2)
    lerp_(live, snapshot, {"a": 0.25, "b": torch.tensor([0.0, 1.0])})
    assert live["a"].tolist() == [0.25, 0.25]
    assert live["b"].tolist() == [0.0, 1.0]


def test_a_transposed_half_precision_weight_is_written_where_it_lies():
    live = torch.zeros(3, 5, dtype=torch.bfloat16).t()
    lerp_({"w": live}, {"w": torch.ones(5, 3, dtype=torch.bfloat16)}, 0.5)
    assert torch.equal(live, torch.full((5, 3), 0.5, dtype=torch.bfloat16))


def broken(change):
    live, snapshot = weights(0), weights(1)
    merge = dict.fromkeys(live, 0.5)
    change(live, snapshot, merge)
    return live, snapshot, merge


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda live, snap, w: live.pop("scalar"), "'scalar' has no live weight"),
        (lambda live, snap, w: snap.update(b=torch.ones(2)), r"'b' has the shape \(7,\).*\(2,\)"),
        (lambda live, snap, w: w.pop("b"), "no merge weight for 'b'"),
        (lambda live, snap, w: w.update(b=float("nan")), "'b' must lie in"),
        (lambda live, snap, w: w.update(b=1.1), "'b' must lie in"),
        (lambda live, snap, w: live["b"].fill_(float("inf")), "live weight 'b' holds NaN or inf"),
        (lambda live, snap, w: snap["b"].fill_(float("nan")), "snapshot weight 'b' holds NaN"),
    ],
)
def test_whatever_is_wrong_nothing_is_written(change, message):
    live, snapshot, merge = broken(change)
    before = live["a"].clone()
    with pytest.raises(ValueError, match=message):
        lerp_(live, snapshot, merge)
    assert torch.equal(live["a"], before)


def test_relative_drift_is_a_ratio_of_norms_over_all_named_weights():
    live, snapshot = weights(0), weights(1)
    moved = torch.cat([(live[n] - snapshot[n]).flatten() for n in ("a", "b")]).norm()
    size = torch.cat([snapshot[n].flatten() for n in ("a", "b")]).norm()
    assert relative_drift(live, snapshot, ("a", "b")) == pytest.approx(float(moved / size))
    zero = {"a": torch.zeros(3)}
    assert relative_drift(zero, zero, ("a",)) == 0
    assert relative_drift({"a": torch.ones(3)}, zero, ("a",)) == float("inf")
