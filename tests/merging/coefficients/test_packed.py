import math

import pytest
import torch

from recall_lightning.measuring.linear_maps import LinearMap, as_matrix
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.merging.coefficients.linear_maps import Balance, merge_maps_, solve_map
from recall_lightning.merging.coefficients.packed import PackedCoefficient, of_weights

Q, K, V = (
    LinearMap("w", "b", "projection", ("",), 5, rows=rows) for rows in ((0, 3), (3, 6), (6, 9))
)
BALANCE = Balance(2.0, 0.1, 0.3)


def solved(one, seed):
    torch.manual_seed(seed)
    old, new = FullMoments.empty(5), FullMoments.empty(5)
    old.update(torch.randn(9, 5))
    new.update(torch.randn(9, 5))
    return solve_map(one, old, new, BALANCE)


def weights(seed):
    torch.manual_seed(seed)
    return {"w": torch.randn(9, 4), "b": torch.randn(9)}


def test_each_part_is_merged_as_if_it_had_a_weight_of_its_own():
    parts = [(one, solved(one, seed)) for seed, one in enumerate((Q, K, V))]
    live, snapshot = weights(10), weights(11)
    expected = [weights(10) for _ in parts]
    for own, (one, coefficient) in zip(expected, parts, strict=True):
        alone = {"w": one.part_of(own["w"]), "b": one.part_of(own["b"])}
        then = {"w": one.part_of(snapshot["w"]), "b": one.part_of(snapshot["b"])}
        matrix = LinearMap("w", "b", "linear", ("",), 5)
        pulled = coefficient.pull((as_matrix(matrix, then) - as_matrix(matrix, alone)).double())
        own["expected"] = as_matrix(matrix, alone) + pulled.float()
    merge_maps_(live, snapshot, [PackedCoefficient(parts)])
    merged = as_matrix(LinearMap("w", "b", "linear", ("",), 5), live)
    torch.testing.assert_close(merged, torch.cat([own["expected"] for own in expected]))


def test_its_figures_are_those_of_its_parts():
    one, other = solved(Q, 0), solved(K, 1)
    packed = PackedCoefficient([(Q, one), (K, other), (V, 0.5)])
    assert packed.mean == pytest.approx((one.mean + other.mean + 0.5) / 3)
    assert packed.condition == max(one.condition, other.condition)
    assert packed.gain == max(one.gain, other.gain, 0.5)
    assert packed.scaled(0.5).mean == pytest.approx(packed.mean / 2)
    difference = torch.randn(9, 5, dtype=torch.float64)
    torch.testing.assert_close(packed.scaled(0.5).pull(difference), packed.pull(difference) / 2)
    assert packed.fits(torch.zeros(9, 5))
    assert not packed.fits(torch.zeros(9, 4))
    assert not packed.fits(torch.zeros(10, 5))


def test_a_part_that_could_not_be_solved_is_seen_in_the_condition():
    for bad in (math.nan, math.inf):
        part = solved(Q, 0)
        part.condition = bad
        condition = PackedCoefficient([(K, solved(K, 1)), (Q, part)]).condition
        assert not math.isfinite(condition)


def test_a_map_without_a_coefficient_has_the_mean_of_its_rows_of_the_rest():
    importance = torch.arange(36.0).view(9, 4) / 36
    given = of_weights([(Q, solved(Q, 0)), (K, None), (V, 0.25)], {"w": importance, "b": 0.0})
    assert given["w"] is given["b"]
    numbers = [number for _, number in given["w"].parts[1:]]
    assert numbers == [pytest.approx(float(importance[3:6].mean())), 0.25]


def test_where_no_part_has_a_coefficient_all_stays_with_the_rest():
    assert of_weights([(Q, None), (K, None), (V, None)], {"w": 0.5, "b": 0.5}) == {}
