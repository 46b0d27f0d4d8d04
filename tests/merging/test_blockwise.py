import math

import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.merging import blockwise
from recall_lightning.merging.blockwise import (
    Drift,
    mean_by_block,
    mean_of,
    merge_snapshots_,
    scaled_by,
    weights_of_names,
    worst_condition,
)
from recall_lightning.merging.coefficients.linear_maps import (
    Balance,
    FullCoefficient,
    MapCoefficient,
)
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.weights.snapshot import Snapshot

BLOCKS = [
    Block("shallow", 9, 0.6, "shallow", ("shallow.weight", "shallow.bias")),
    Block("deep", 6, 0.4, "deep", ("deep.weight",)),
]


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"shallow.weight": (2, 3), "shallow.bias": (3,), "deep.weight": (2, 3)}
    return {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}


def test_a_weights_own_coefficient_goes_before_its_blocks():
    given = {"shallow": 0.5, "deep": 0.3, "shallow.bias": 0.1}
    expected = {"shallow.weight": 0.5, "shallow.bias": 0.1, "deep.weight": 0.3}
    assert weights_of_names(given, BLOCKS, tensors(0)) == expected


def test_what_became_trainable_after_the_snapshot_has_no_weight():
    copies = {"deep.weight": torch.zeros(2, 3)}
    assert weights_of_names({"shallow": 0.5, "deep": 0.3}, BLOCKS, copies) == {"deep.weight": 0.3}


def test_the_mean_of_a_block_counts_elements():
    values = {"shallow.weight": 0.5, "shallow.bias": 0.2, "deep.weight": 0.3}
    assert mean_by_block(values, BLOCKS, tensors(0)) == pytest.approx({"shallow": 0.4, "deep": 0.3})


def test_drift_is_a_ratio_of_norms_over_a_block():
    then, now = tensors(0), tensors(1)
    drift = Drift(Snapshot(then)).by_block(now, BLOCKS)
    sides = [torch.cat([side[n].flatten() for n in BLOCKS[0].weights]) for side in (then, now)]
    assert drift["shallow"] == pytest.approx(float((sides[1] - sides[0]).norm() / sides[0].norm()))


def test_drift_from_zeros_is_zero_or_infinite_and_from_nan_it_is_nan():
    block = [Block("0", 3, 1.0, "0", ("w",))]
    drift = Drift(Snapshot({"w": torch.zeros(3)}))
    assert drift.by_block({"w": torch.zeros(3)}, block) == {"0": 0.0}
    assert drift.by_block({"w": torch.ones(3)}, block) == {"0": math.inf}
    moved = Drift(Snapshot({"w": torch.ones(3)})).by_block({"w": torch.full((3,), math.nan)}, block)
    assert math.isnan(moved["0"])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_live_weights_keep_what_the_snapshots_leave(count):
    live, snapshots = tensors(0), [tensors(i + 1) for i in range(count)]
    weights = [dict.fromkeys(live, 0.2 + 0.05 * i) for i in range(count)]
    rest = 1 - sum(given["deep.weight"] for given in weights)
    expected = {
        n: rest * live[n] + sum(w[n] * s[n] for w, s in zip(weights, snapshots, strict=True))
        for n in live
    }
    assert merge_snapshots_(live, snapshots, weights) == {}
    for name in live:
        torch.testing.assert_close(live[name], expected[name])


def test_factors_are_merged_by_their_product_and_other_weights_by_themselves():
    def adapter(seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "a": torch.randn(2, 5, generator=generator),
            "b": torch.randn(4, 2, generator=generator),
            "norm": torch.randn(4, generator=generator),
        }

    live, then = adapter(0), adapter(1)
    middle = (live["b"] @ live["a"] + then["b"] @ then["a"]) / 2
    norm = (live["norm"] + then["norm"]) / 2
    u, s, v = torch.linalg.svd(middle)
    lost = merge_snapshots_(
        live, [then], [dict.fromkeys(live, 0.5)], [LoraPair("layer", "a", "b", 1.0, 2)]
    )
    torch.testing.assert_close(
        live["b"] @ live["a"], u[:, :2] * s[:2] @ v[:2], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(live["norm"], norm)
    assert lost["layer"] == pytest.approx(float(s[2:].square().sum() / s.square().sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda live, weights: live["deep.weight"].fill_(math.nan),
            "live weight 'deep.weight' holds",
        ),
        (lambda live, weights: weights[0].update({"deep.weight": 0.7}), "must be parts of 1"),
        (lambda live, weights: weights[0].update({"deep.weight": math.nan}), "must be parts of 1"),
    ],
)
def test_whatever_is_wrong_nothing_is_written(change, message):
    live = tensors(0)
    weights = [dict.fromkeys(live, 0.5), dict.fromkeys(live, 0.5)]
    change(live, weights)
    with pytest.raises(ValueError, match=message):
        merge_snapshots_(live, [tensors(1), tensors(2)], weights)
    assert torch.equal(live["shallow.weight"], tensors(0)["shallow.weight"])


def test_a_weight_may_have_a_coefficient_an_element():
    live, then = tensors(0), tensors(1)
    own = {"shallow": 0.5, "deep": torch.rand(2, 3)}
    weights = weights_of_names(own | {"shallow.bias": torch.tensor(0.25)}, BLOCKS, then)
    assert weights["shallow.bias"] == 0.25
    expected = live["deep.weight"] + own["deep"] * (then["deep.weight"] - live["deep.weight"])
    merge_snapshots_(live, [then], [weights])
    torch.testing.assert_close(live["deep.weight"], expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deep": torch.rand(3, 2)}, r"deep coefficients of the shape \(3, 2\)"),
        ({"deep": torch.full((2, 3), 1.5)}, "coefficients from 1.5 to 1.5"),
        ({"deep": -0.1}, "block deep the coefficient -0.1"),
        ({"deep": "half"}, "block deep the coefficient half, which must be a number"),
        ({}, "must give a coefficient for the weight"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        weights_of_names({"shallow": 0.5} | given, BLOCKS, tensors(0))


def test_elements_that_are_not_finite_refuse_the_merge_before_anything_is_written():
    live = tensors(0)
    weights = dict.fromkeys(live, 0.5) | {"deep.weight": torch.full((2, 3), math.nan)}
    with pytest.raises(ValueError, match=r"merge weight of 'deep\.weight' must be finite"):
        merge_snapshots_(live, [tensors(1)], [weights])
    assert torch.equal(live["shallow.weight"], tensors(0)["shallow.weight"])


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_elements_outside_the_range_refuse_the_merge_before_anything_is_written(value):
    live = tensors(0)
    weights = dict.fromkeys(live, 0.5) | {"deep.weight": torch.full((2, 3), value)}
    with pytest.raises(ValueError, match=r"'deep\.weight' must lie in \[0, 1\]"):
        merge_snapshots_(live, [tensors(1)], [weights])
    assert torch.equal(live["shallow.weight"], tensors(0)["shallow.weight"])


def test_elements_of_a_rule_are_looked_at_once(monkeypatch):
    live, looked_at = tensors(0), []
    monkeypatch.setattr(
        blockwise, "range_of", lambda tensor: looked_at.append(tensor) or (0.5, 0.5)
    )
    given = {"shallow": 0.5, "deep": torch.full((2, 3), 0.5)}
    weights = weights_of_names(given, BLOCKS, live)
    merge_snapshots_(live, [tensors(1)], [weights], check_elements=False)
    assert len(looked_at) == 1


def test_a_rule_that_gives_elements_that_are_not_finite_has_the_merge_refused():
    live = tensors(0)
    weights = weights_of_names({"shallow": 0.5, "deep": torch.full((2, 3), math.nan)}, BLOCKS, live)
    with pytest.raises(ValueError, match=r"'deep\.weight' must be parts of 1, not \[nan\]"):
        merge_snapshots_(live, [tensors(1)], [weights], check_elements=False)
    assert torch.equal(live["shallow.weight"], tensors(0)["shallow.weight"])


def half_matrix():
    moments = FullMoments(torch.eye(4), torch.tensor(1.0))
    linear_map = LinearMap("shallow.weight", "shallow.bias", "linear", ("shallow",), 4)
    return FullCoefficient.solve(linear_map, moments, moments, Balance(1.0, 1e-9, 0.0))


def test_a_matrix_is_of_a_weight_and_its_bias_and_is_merged_once():
    live = {"shallow.weight": torch.zeros(2, 3), "shallow.bias": torch.zeros(2)}
    then = {name: torch.ones_like(tensor) for name, tensor in live.items()}
    matrix = half_matrix()
    merge_snapshots_(live, [then], [dict.fromkeys(live, matrix)])
    for tensor in live.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.5))
    live = dict.fromkeys(live, torch.zeros(2))
    with pytest.raises(ValueError, match=r"of several snapshots 'shallow.weight' needs a number"):
        merge_snapshots_(live, [live, live], [dict.fromkeys(live, matrix)] * 2)


def test_strength_multiplies_numbers_elements_and_matrices_and_a_bias_goes_with_its_map():
    matrix, elements = half_matrix(), torch.rand(2, 3)
    weights = {"shallow.weight": matrix, "shallow.bias": matrix, "deep.weight": elements}
    scaled = scaled_by(weights, {"*.bias": 0.0, "shallow.*": 0.5, "*": 0.1}, BLOCKS)
    assert scaled["shallow.bias"] is scaled["shallow.weight"]
    assert scaled["shallow.weight"].mean == pytest.approx(0.25)
    torch.testing.assert_close(scaled["deep.weight"], 0.1 * elements)
    assert scaled_by({"deep.weight": 0.5}, 0.5, BLOCKS) == {"deep.weight": 0.25}


def test_a_matrix_is_scaled_once_for_a_weight_and_its_bias(monkeypatch):
    matrix, scaled = half_matrix(), []
    monkeypatch.setattr(matrix, "scaled", lambda factor: scaled.append(factor) or half_matrix())
    scaled_by({"shallow.weight": matrix, "shallow.bias": matrix}, 0.5, BLOCKS)
    assert scaled == [0.5]


class Doubling(MapCoefficient):
    """Goes twice as far as the snapshot: so far that half precision may not hold it."""

    def pull(self, difference, first_row=0):
        return 2 * difference

    def scaled(self, strength):
        return self


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_map_too_large_for_its_precision_refuses_the_merge_before_anything_is_written(dtype):
    largest = torch.finfo(dtype).max
    pair = LoraPair("deep", "deep.a", "deep.b", 1.0, 1)
    names = {"shallow.weight": (2, 3), "deep.weight": (2, 2), "deep.a": (1, 3), "deep.b": (2, 1)}
    live = {name: torch.zeros(shape, dtype=dtype) for name, shape in names.items()}
    then = {name: torch.ones(shape, dtype=dtype) for name, shape in names.items()}
    then["deep.weight"][0, 0] = largest
    weights = dict.fromkeys(names, 0.5)
    for name, width in (("shallow.weight", 3), ("deep.weight", 2)):
        weights[name] = Doubling(LinearMap(name, None, "linear", ("",), width), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"made the weight 'deep\.weight' infinite"):
        merge_snapshots_(live, [then], [weights], [pair])
    assert not any(tensor.any() for tensor in live.values())
    then["deep.weight"][0, 0] = 1
    merge_snapshots_(live, [then], [weights], [pair])
    assert live["deep.weight"].eq(2).all()


def test_strength_may_not_part_the_factors_of_an_update():
    pair = LoraPair("deep", "shallow.weight", "deep.weight", 1.0, 2)
    with pytest.raises(ValueError, match="are merged as one update"):
        scaled_by(dict.fromkeys(tensors(0), 0.5), {"deep.*": 0.1, "*": 0.5}, BLOCKS, [pair])


def test_a_block_is_as_badly_conditioned_as_its_worst_map():
    one, worse = half_matrix(), half_matrix()
    worse.condition = 7.0
    weights = {"shallow.weight": one, "shallow.bias": worse, "deep.weight": 0.5}
    assert worst_condition(weights, BLOCKS) == {"shallow": 7.0}


def test_a_coefficient_counts_as_its_mean():
    assert mean_of(0.25) == 0.25
    assert mean_of(torch.tensor([[0.0], [1.0]])) == 0.5
    assert mean_of(half_matrix()) == pytest.approx(0.5)
