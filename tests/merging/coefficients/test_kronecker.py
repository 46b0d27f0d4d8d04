import pytest
import torch

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, LowRankMoments, RowCounts
from recall_lightning.merging.coefficients.kronecker import Basis, KroneckerCoefficient
from recall_lightning.merging.coefficients.linear_maps import (
    Balance,
    FullCoefficient,
    merge_maps_,
)

LINEAR = LinearMap("w", "b", "linear", ("",), 5)
TABLE = LinearMap("w", None, "embedding", ("",), 5)


def moments(width, seed, samples=50):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(samples, width, generator=generator)
    return FullMoments(rows.T @ rows / samples, torch.ones(()))


def counts(seed):
    return RowCounts(torch.rand(5, generator=torch.Generator().manual_seed(seed)), torch.ones(()))


def dense(moments):
    matrix = torch.diag(moments.counts) if isinstance(moments, RowCounts) else moments.matrix
    return matrix.double()


def by_normal_equations(linear_map, difference, old, new):
    """Solve old (X − S) + new (X − L) = 0 over vec(W) by brute force; return X − L."""
    shape = difference.shape
    if linear_map.kind == "embedding":
        difference = difference.T
    step = torch.linalg.solve(old + new, old @ difference.flatten())
    step = step.view(difference.shape)
    return step.T if linear_map.kind == "embedding" else step.view(shape)


@pytest.mark.parametrize("linear_map", [LINEAR, TABLE], ids=["linear", "embedding"])
def test_importance_is_the_proximal_step_of_the_whole_quadratic(linear_map):
    inputs = moments(5, 0) if linear_map is LINEAR else counts(0)
    outputs = FullMoments(moments(3, 1).matrix, torch.tensor(2.0))  # of two tasks
    taken = KroneckerCoefficient.of_importance(linear_map, inputs, outputs, scale=0.7)
    difference = torch.randn(3, 5) if linear_map is LINEAR else torch.randn(5, 3)
    curvature = 0.7 / 2 * torch.kron(dense(outputs), dense(inputs))
    unit = torch.eye(15, dtype=torch.float64)
    expected = by_normal_equations(linear_map, difference.double(), curvature, unit)
    torch.testing.assert_close(taken.pull(difference), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear_map", [LINEAR, TABLE], ids=["linear", "embedding"])
def test_two_curvatures_meet_at_the_minimum_of_both(linear_map):
    inputs = (moments(5, 0), moments(5, 1)) if linear_map is LINEAR else (counts(0), counts(1))
    outputs = (FullMoments(moments(3, 2).matrix, torch.tensor(2.0)), moments(3, 3))
    taken = KroneckerCoefficient.between(linear_map, inputs, outputs, 0.5, (0.01, 0.1))
    difference = torch.randn(3, 5) if linear_map is LINEAR else torch.randn(5, 3)

    def relative(one, ridge):
        matrix = dense(one)
        return matrix / matrix.diagonal().mean() + ridge * torch.eye(len(matrix))

    old, new = (
        torch.kron(relative(b, 0.1), relative(a, 0.01))
        for a, b in zip(inputs, outputs, strict=True)
    )
    expected = by_normal_equations(linear_map, difference.double(), 2 * old, 0.5 * new)
    torch.testing.assert_close(taken.pull(difference), expected.float(), rtol=1e-3, atol=1e-4)


def test_with_outputs_that_all_count_alike_it_is_the_subspace_rule():
    old, new = moments(5, 0), moments(5, 1)
    old, new = (FullMoments(m.matrix / m.matrix.diagonal().mean(), m.count) for m in (old, new))
    same = FullMoments(torch.eye(3), torch.ones(()))
    taken = KroneckerCoefficient.between(LINEAR, (old, new), (same, same), 2.0, (1e-6, 1e-6))
    expected = FullCoefficient.solve(LINEAR, old, new, Balance(2.0, 1e-6, 0.0))
    difference = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        taken.pull(difference), expected.pull(difference), rtol=1e-3, atol=1e-3
    )
    assert taken.mean == pytest.approx(expected.mean, rel=1e-3)


def low_rank(width, seed, rank, rest=0.5):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(rank, width, generator=generator)
    own = rest * torch.rand(width, generator=generator)
    return LowRankMoments(factor, factor.square().sum(0) + own, torch.ones(()), rank)


def whole(moments):
    return FullMoments(moments.factor.T @ moments.factor + moments.rest.diag(), moments.count)


def test_low_rank_moments_of_full_rank_have_the_dense_closed_form():
    inputs, outputs = ([low_rank(n, s + n, n, 0.0) for s in (0, 1)] for n in (5, 3))
    taken = KroneckerCoefficient.between(LINEAR, inputs, outputs, 0.5, (0.01, 0.1))
    dense = [tuple(map(whole, pair)) for pair in (inputs, outputs)]
    expected = KroneckerCoefficient.between(LINEAR, *dense, 0.5, (0.01, 0.1))
    difference = torch.randn(3, 5)
    torch.testing.assert_close(
        taken.pull(difference), expected.pull(difference), rtol=1e-3, atol=1e-4
    )
    assert taken.mean == pytest.approx(expected.mean, rel=1e-3)


@pytest.mark.parametrize("wide", [(True, True), (True, False), (False, True)])
def test_a_few_directions_and_equal_diagonals_have_the_dense_closed_form(wide):
    """Diagonals that are multiples of one another are no approximation, on one side or both."""
    sides = []
    for width, is_wide in zip((9, 7), wide, strict=True):
        old, new = low_rank(width, width, 2), low_rank(width, width + 1, 2)
        ridge_free = torch.full((width,), 0.3)
        old.diagonal = old.factor.square().sum(0) + ridge_free
        new.diagonal = new.factor.square().sum(0) + 2 * ridge_free
        sides.append((old, new) if is_wide else (whole(old), whole(new)))
    linear_map = LinearMap("w", None, "linear", ("",), 9)
    taken = KroneckerCoefficient.between(linear_map, *sides, 0.5, (0.01, 0.1))
    dense = [tuple(m if isinstance(m, FullMoments) else whole(m) for m in side) for side in sides]
    expected = KroneckerCoefficient.between(linear_map, *dense, 0.5, (0.01, 0.1))
    left, right = torch.randn(7, 2).double(), torch.randn(2, 9).double()
    pulled = taken.pull(left @ right)
    torch.testing.assert_close(pulled, expected.pull(left @ right), rtol=1e-3, atol=1e-4)
    thin = sum(one @ two for one, two in taken.pull_product(left, right))
    torch.testing.assert_close(thin, pulled, rtol=1e-4, atol=1e-5)
    assert taken.mean == pytest.approx(expected.mean, rel=1e-3)
    assert taken.fits(torch.zeros(7, 9))


def test_importance_of_low_rank_moments_is_the_proximal_step_with_an_even_diagonal():
    inputs, outputs = low_rank(5, 0, 2), low_rank(3, 1, 1)
    taken = KroneckerCoefficient.of_importance(LINEAR, inputs, outputs, scale=0.7)
    even = [
        FullMoments(m.factor.T @ m.factor + m.rest.mean() * torch.eye(m.width), m.count)
        for m in (inputs, outputs)
    ]
    expected = KroneckerCoefficient.of_importance(LINEAR, *even, scale=0.7)
    difference = torch.randn(3, 5)
    torch.testing.assert_close(
        taken.pull(difference), expected.pull(difference), rtol=1e-3, atol=1e-5
    )
    assert taken.mean == pytest.approx(expected.mean, rel=1e-4)


def test_an_embedding_of_wide_rows_is_merged_in_the_directions_that_outputs_have():
    outputs = (low_rank(7, 0, 7, 0.0), low_rank(7, 1, 7, 0.0))
    few = tuple(LowRankMoments(m.factor[:2], m.diagonal, m.count, 2) for m in outputs)
    tall = LinearMap("w", None, "embedding", ("",), 5)
    for given in (outputs, few):
        taken = KroneckerCoefficient.between(tall, (counts(0), counts(1)), given, 0.5, (0.01, 0.1))
        units = torch.eye(35).view(35, 5, 7)
        trace = sum(float((taken.pull(unit) * unit).sum()) for unit in units)
        assert taken.mean == pytest.approx(trace / 35, rel=1e-3)
    dense = tuple(map(whole, outputs))
    expected = KroneckerCoefficient.between(tall, (counts(0), counts(1)), dense, 0.5, (0.01, 0.1))
    taken = KroneckerCoefficient.between(tall, (counts(0), counts(1)), outputs, 0.5, (0.01, 0.1))
    rows = torch.randn(5, 7)
    torch.testing.assert_close(taken.pull(rows), expected.pull(rows), rtol=1e-3, atol=1e-4)


def test_the_bases_are_found_once_for_the_same_moments(monkeypatch):
    found, find = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: found.append(1) or find(matrix))
    inputs, outputs = (moments(5, 0), moments(5, 1)), (moments(3, 2), moments(3, 3))
    for weight in (0.5, 1.0, 2.0):
        KroneckerCoefficient.between(LINEAR, inputs, outputs, weight, (0.01, 0.1))
    assert len(found) == 2  # one a side


def test_strength_multiplies_the_pull_and_the_mean():
    taken = KroneckerCoefficient.of_importance(LINEAR, moments(5, 0), moments(3, 1), 1.0)
    difference = torch.randn(3, 5)
    half = taken.scaled(0.5)
    torch.testing.assert_close(half.pull(difference), 0.5 * taken.pull(difference))
    assert half.mean == pytest.approx(0.5 * taken.mean)


def test_the_mean_is_that_of_the_matrix_over_all_directions():
    taken = KroneckerCoefficient.of_importance(LINEAR, moments(5, 0), moments(3, 1), 1.0)
    units = torch.eye(15).view(15, 3, 5)
    trace = sum(float((taken.pull(unit) * unit).sum()) for unit in units)
    assert taken.mean == pytest.approx(trace / 15, rel=1e-4)


def test_an_embedding_is_merged_some_rows_at_a_time(monkeypatch):
    from recall_lightning.merging.coefficients import linear_maps as map_coefficients

    taken = KroneckerCoefficient.of_importance(TABLE, counts(0), moments(3, 1), 1.0)
    live, then = torch.randn(5, 3), torch.randn(5, 3)
    expected = live + taken.pull(then - live)
    monkeypatch.setattr(map_coefficients, "_ELEMENTS", 6)  # two rows
    weights = {"w": live.clone()}
    merge_maps_(weights, {"w": then}, [taken])
    torch.testing.assert_close(weights["w"], expected)


def test_weights_that_equal_the_snapshot_stay_bit_for_bit():
    taken = KroneckerCoefficient.of_importance(LINEAR, moments(5, 0), moments(3, 1), 1.0)
    live = {"w": torch.randn(3, 4), "b": torch.randn(3)}
    then = {name: tensor.clone() for name, tensor in live.items()}
    merge_maps_(live, then, [taken])
    assert all(torch.equal(live[name], then[name]) for name in live)


def test_moments_that_are_not_finite_give_a_mean_that_is_not():
    bad = FullMoments(torch.full((5, 5), torch.nan), torch.ones(()))
    outputs = moments(3, 1)
    of_importance = KroneckerCoefficient.of_importance(LINEAR, bad, outputs, 1.0)
    between = KroneckerCoefficient.between(
        LINEAR, (moments(5, 0), bad), (outputs, outputs), 1.0, (0.01, 0.1)
    )
    assert of_importance.mean != of_importance.mean  # NaN
    assert between.mean != between.mean


def test_the_common_basis_is_the_generalised_eigenbasis():
    old, new = moments(5, 0), moments(5, 1)
    basis, condition = Basis.between(old, new, 1e-3)
    torch.testing.assert_close(basis.into @ basis.back, torch.eye(5), atol=1e-4, rtol=0)
    relative = new.matrix / new.matrix.diagonal().mean() + 1e-3 * torch.eye(5)
    torch.testing.assert_close(
        basis.back.T @ relative @ basis.back, torch.eye(5), atol=1e-4, rtol=0
    )
    assert condition == pytest.approx(float(torch.linalg.cond(relative)), rel=1e-3)


def test_a_system_that_cannot_be_factored_has_no_finite_condition():
    singular = FullMoments(torch.ones(5, 5), torch.ones(()))
    _, condition = Basis.between(moments(5, 0), singular, 1e-30)
    assert condition == float("inf")


def test_a_coefficient_knows_the_matrices_that_it_fits():
    taken = KroneckerCoefficient.of_importance(LINEAR, moments(5, 0), moments(3, 1), 1.0)
    table = KroneckerCoefficient.of_importance(TABLE, counts(0), moments(3, 1), 1.0)
    assert taken.fits(torch.zeros(3, 5))
    assert not taken.fits(torch.zeros(4, 5))
    assert table.fits(torch.zeros(5, 3))


@pytest.mark.parametrize("linear_map", [LINEAR, TABLE], ids=["linear", "embedding"])
def test_no_difference_is_pulled_further_than_the_gain_says(linear_map):
    inputs = (moments(5, 0), moments(5, 1)) if linear_map is LINEAR else (counts(0), counts(1))
    outputs = (moments(3, 2), moments(3, 3))
    taken = KroneckerCoefficient.between(linear_map, inputs, outputs, 0.01, (0.01, 0.1)).scaled(0.5)
    shape = (3, 5) if linear_map is LINEAR else (5, 3)
    units = torch.eye(15).view(15, *shape)
    matrix = torch.stack([taken.pull(unit).flatten() for unit in units])
    assert float(torch.linalg.matrix_norm(matrix, 2)) <= taken.gain < float("inf")
