import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.merging.functional.in_place import lerp_, squared_distance, weighted_sum_


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
        (lambda live, snap, w: live.pop("scalar"), "'scalar' needs a live weight"),
        (lambda live, snap, w: snap.update(b=torch.ones(2)), r"'b' has the shape \(7,\).*\(2,\)"),
        (lambda live, snap, w: w.pop("b"), "'b' needs a merge weight"),
        (lambda live, snap, w: w.update(b=float("nan")), "'b' must lie in"),
        (lambda live, snap, w: w.update(b=1.1), "'b' must lie in"),
        (
            lambda live, snap, w: w.update(b=torch.ones(3)),
            r"'b' has the shape \(3,\), which must",
        ),
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


def test_squared_distance_is_over_all_named_weights():
    live, snapshot = weights(0), weights(1, torch.bfloat16)
    moved = torch.cat([(live[n] - snapshot[n].float()).flatten() for n in ("a", "b")]).norm() ** 2
    assert squared_distance(live, snapshot, ("a", "b")) == pytest.approx(float(moved))
    assert squared_distance(live, None, ("b",)) == pytest.approx(float(live["b"].norm() ** 2))
    assert math.isnan(squared_distance({"w": torch.tensor([math.nan])}, None, ("w",)))


def test_tied_storage_is_merged_once():
    shared = torch.zeros(4)
    live, copy = {"head": shared, "embedding": shared}, torch.ones(4)
    lerp_(live, {"head": copy, "embedding": copy}, 0.5)
    assert shared.tolist() == [0.5] * 4
    weighted_sum_(live, [live, {"head": copy, "embedding": copy}], [0.5, 0.5])
    assert shared.tolist() == [0.75] * 4


def test_a_weight_and_its_transpose_are_one():
    shared = torch.zeros(3, 4)
    lerp_({"e": shared, "d": shared.T}, {"e": torch.ones(3, 4), "d": torch.ones(4, 3)}, 0.5)
    assert shared.unique().tolist() == [0.5]


def test_integers_and_booleans_are_never_averaged():
    live = {"steps": torch.tensor(3), "mask": torch.tensor([True, False])}
    other = {"steps": torch.tensor(8), "mask": torch.tensor([False, False])}
    lerp_(live, other, 0.5)
    assert live["steps"] == 3
    assert live["mask"].tolist() == [True, False]
    weighted_sum_(live, [other, live], [0.5, 0.5])
    assert live["steps"] == 8
    assert live["mask"].tolist() == [False, False]


def test_a_snapshot_in_another_precision_is_merged_in_the_finer_one():
    live = {"w": torch.ones(3, dtype=torch.bfloat16)}
    lerp_(live, {"w": torch.full((3,), 1.01)}, 0.5)  # 1.01 in bfloat16 is 1.0078
    assert torch.equal(live["w"], torch.full((3,), 1.005).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shares", [[0.6, 0.4], [0.1] * 10, [1 / 3] * 3, [1.7, -0.7]])
def test_equal_models_come_back_bit_for_bit(dtype, shares):
    model, out = weights(0, dtype, size=300), weights(1, dtype, size=300)
    weighted_sum_(out, [model] * len(shares), shares)
    assert all(torch.equal(out[name], model[name]) for name in model)


@given(order=st.permutations([0, 1, 2]), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_the_order_of_models_does_not_matter(order, seed):
    models, shares = [weights(seed + i) for i in range(3)], [0.2, 0.5, 0.3]
    out, permuted = weights(0), weights(0)
    weighted_sum_(out, models, shares)
    weighted_sum_(permuted, [models[i] for i in order], [shares[i] for i in order])
    assert all(torch.equal(out[name], permuted[name]) for name in out)


def test_a_model_with_all_the_weight_is_returned_and_may_be_the_output():
    models = [weights(0), weights(1)]
    kept = {name: tensor.clone() for name, tensor in models[1].items()}
    weighted_sum_(models[0], models, [0.0, 1.0])
    assert all(torch.equal(models[0][name], kept[name]) for name in kept)


def test_weights_of_a_sum_may_be_by_name_and_by_element():
    models = [{"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.zeros(2), "b": torch.zeros(2)}]
    out = {"a": torch.empty(2), "b": torch.empty(2, 1).expand(2, 2).clone().t()[0]}
    weighted_sum_(out, models, [{"a": 0.25, "b": torch.tensor([0.0, 2.0])}, 1.0])
    assert out["a"].tolist() == [0.25, 0.25]
    assert out["b"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda models, shares: models.pop(), "1 models need as many weights, not 2"),
        (lambda models, shares: models[1].pop("b"), "model 1 lacks the weight 'b'"),
        (lambda models, shares: models[1].update(b=torch.ones(2)), r"'b' has the shape \(7,\)"),
        (
            lambda models, shares: models[1].update(b=torch.ones(7).int()),
            "'b' is torch.float32 and",
        ),
        (
            lambda models, shares: shares.append(math.inf) or shares.pop(0),
            "weight of 'a' must be fin",
        ),
        (lambda models, shares: models[0]["b"].fill_(math.nan), "model 0's weight 'b' holds NaN"),
    ],
)
def test_whatever_is_wrong_no_sum_is_written(change, message):
    models, shares, out = [weights(0), weights(1)], [0.5, 0.5], weights(2)
    change(models, shares)
    with pytest.raises(ValueError, match=message):
        weighted_sum_(out, models, shares)
    assert all(torch.equal(tensor, weights(2)[name]) for name, tensor in out.items())


def test_each_process_merges_its_shard_of_a_dtensor(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        shard = [torch.distributed.tensor.Shard(0)]
        live = {"w": torch.distributed.tensor.distribute_tensor(torch.zeros(4), mesh, shard)}
        copy = {"w": torch.distributed.tensor.distribute_tensor(torch.ones(4), mesh, shard)}
        lerp_(live, copy, 0.25)
        weighted_sum_(live, [live, copy], [0.5, 0.5])
        assert live["w"].full_tensor().tolist() == [0.625] * 4
        with pytest.raises(ValueError, match="'w' is sharded as"):
            lerp_(live, {"w": torch.ones(4)}, 0.5)
    finally:
        torch.distributed.destroy_process_group()
