import copy
import math

import pytest
import torch
from torch import nn

from recall_lightning.measuring.input_moments import empty_moments, input_moments
from recall_lightning.measuring.linear_maps import LinearMap, as_matrix, find_linear_maps
from recall_lightning.measuring.moments import FullMoments, LowRankMoments
from recall_lightning.merging.coefficients.linear_maps import (
    Balance,
    LowRankCoefficient,
    merge_maps_,
    solve_map,
)
from recall_lightning.merging.functional import regmean
from recall_lightning.weights.naming import named_weights

MAP = LinearMap("w", "b", "linear", ("",), 7)
BALANCE = Balance(new=3.0, ridge=0.05, mix=0.3)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(seed, count=12):
    return torch.cat([normal(seed, count, 6) * (seed + 1), torch.ones(count, 1)], dim=1)


def moments(rows, rank=None):
    """Mean moments in double precision, so that formulas can be compared."""
    if rank is None:
        return FullMoments(rows.T @ rows / len(rows), torch.tensor(1.0))
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    factor = (vectors * values.clamp(min=0).sqrt()).T[-rank:]
    diagonal = rows.square().mean(0)
    return LowRankMoments(factor, diagonal, torch.tensor(1.0), rank)


def dense(low):
    return FullMoments(low.factor.T @ low.factor + torch.diag(low.rest), low.count)


OLD, NEW = inputs(0), inputs(1)
THEN, NOW = normal(2, 4, 7), normal(3, 4, 7)


def merged_by(coefficient, now=NOW):
    return now + coefficient.pull(THEN - now)


def test_the_merge_minimises_the_written_out_objective():
    """Stacked least squares: old inputs to old outputs, √λ new to new, √r a pull to the mix."""
    ridge = BALANCE.ridge * OLD.square().sum() / len(OLD) / 7
    mixed = BALANCE.mix * THEN + (1 - BALANCE.mix) * NOW
    scales = [len(OLD) ** -0.5, (BALANCE.new / len(NEW)) ** 0.5, ridge**0.5]
    rows = [OLD, NEW, torch.eye(7, dtype=torch.float64)]
    targets = [OLD @ THEN.T, NEW @ NOW.T, mixed.T]
    stacked = torch.cat([s * r for s, r in zip(scales, rows, strict=True)])
    wanted = torch.cat([s * t for s, t in zip(scales, targets, strict=True)])
    best = torch.linalg.lstsq(stacked, wanted).solution.T
    merged = merged_by(solve_map(MAP, moments(OLD), moments(NEW), BALANCE))
    torch.testing.assert_close(merged, best)


def test_it_is_the_merge_of_model_files_by_second_moments_with_the_same_mix():
    old, new = moments(OLD).matrix, BALANCE.new * moments(NEW).matrix
    share = BALANCE.mix
    expected = regmean(
        [THEN, NOW], [share, 1 - share], [old / share, new / (1 - share)],
        ridge=float(BALANCE.ridge * old.trace() / (old + new).trace()),
    )  # fmt: skip
    merged = merged_by(solve_map(MAP, moments(OLD), moments(NEW), BALANCE))
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_is_the_full_solution_of_what_it_holds(rank):
    low = [moments(rows, rank) for rows in (OLD, NEW)]
    coefficient = solve_map(MAP, *low, BALANCE)
    full = solve_map(MAP, *map(dense, low), BALANCE)
    assert isinstance(coefficient, LowRankCoefficient)
    torch.testing.assert_close(merged_by(coefficient), merged_by(full))
    assert coefficient.mean == pytest.approx(full.mean)
    exact = solve_map(MAP, moments(OLD), moments(NEW), BALANCE)
    assert (rank == 7) == torch.allclose(merged_by(coefficient), merged_by(exact))


@pytest.mark.parametrize("rank", [None, 3])
def test_the_mean_is_that_of_the_eigenvalues_and_strength_scales_all(rank):
    coefficient = solve_map(MAP, moments(OLD, rank), moments(NEW, rank), BALANCE)
    matrix = coefficient.pull(torch.eye(7, dtype=torch.float64))
    values = torch.linalg.eigvals(matrix).real
    assert coefficient.mean == pytest.approx(float(values.mean()))
    assert values.min() >= 0
    assert values.max() <= 1
    half = coefficient.scaled(0.5)
    torch.testing.assert_close(half.pull(THEN), 0.5 * coefficient.pull(THEN))
    assert half.mean == pytest.approx(0.5 * coefficient.mean)
    assert half.condition == coefficient.condition


def test_the_condition_is_that_of_the_system():
    coefficient = solve_map(MAP, moments(OLD), moments(NEW), BALANCE)
    old = moments(OLD).matrix
    system = old + 3 * moments(NEW).matrix + 0.05 * old.trace() / 7 * torch.eye(7)
    assert coefficient.condition == pytest.approx(float(torch.linalg.cond(system, 1)))


@pytest.mark.parametrize("rank", [None, 3])
def test_solving_leaves_the_moments_as_they_were(rank):
    old, new = moments(OLD, rank), moments(NEW, rank)
    before = copy.deepcopy([old.state_dict(), new.state_dict()])
    solve_map(MAP, old, new, BALANCE)
    for state, then in zip([old.state_dict(), new.state_dict()], before, strict=True):
        assert all(torch.equal(state[name], then[name]) for name in then)


@pytest.mark.parametrize("rank", [None, 7])
def test_new_inputs_that_count_a_lot_keep_the_live_map_and_none_the_snapshots_outputs(rank):
    def at(new):
        balance = Balance(new, 1e-9, 0.3)
        return merged_by(solve_map(MAP, moments(OLD, rank), moments(NEW, rank), balance))

    torch.testing.assert_close(at(1e12), NOW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(OLD @ at(1e-12).T, OLD @ THEN.T, rtol=1e-4, atol=1e-4)


def test_a_direction_that_no_input_has_takes_the_mix():
    old = FullMoments(torch.diag(torch.tensor([1.0, 0.0])), torch.tensor(1.0))
    coefficient = solve_map(LinearMap("w", None, "linear", ("",), 2), old, old, BALANCE)
    taken = coefficient.pull(torch.eye(2, dtype=torch.float64)).diagonal().tolist()
    ridge = 0.05 / 2
    assert taken == pytest.approx([(1 + ridge * 0.3) / (4 + ridge), 0.3])


@pytest.mark.parametrize("rank", [None, 3])
def test_a_map_without_old_inputs_has_nothing_to_keep(rank):
    zeros = torch.zeros(4, 7, dtype=torch.float64)
    assert solve_map(MAP, moments(zeros, rank), moments(NEW, rank), BALANCE) is None


@pytest.mark.parametrize("rank", [None, 3])
def test_moments_that_are_not_finite_give_a_condition_that_is_not_either(rank):
    old = moments(OLD, rank)
    for tensor in old.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    assert not math.isfinite(solve_map(MAP, old, moments(NEW, rank), BALANCE).condition)


def test_moments_of_different_kinds_or_widths_are_refused_by_name():
    with pytest.raises(ValueError, match=r"the moments of 'w' are FullMoments.*keep moment_width"):
        solve_map(MAP, moments(OLD), moments(NEW, 3), BALANCE)
    with pytest.raises(ValueError, match=r"the inputs of 'w' had 6 entries .* have 7 now"):
        solve_map(MAP, moments(OLD[:, :6]), moments(NEW), BALANCE)


def gpt2_layer():
    from transformers.pytorch_utils import Conv1D

    return Conv1D(4, 3)


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (20, 3)),
    "no bias": (lambda: nn.Linear(3, 4, bias=False), (20, 3)),
    "transposed": (gpt2_layer, (20, 3)),
    "convolution": (lambda: nn.Conv2d(3, 4, 2), (5, 3, 4, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("full_width", [1, 99])
def test_every_layout_keeps_its_outputs_on_old_inputs(kind, full_width):
    """With λ → 0 the merged layer does on the old inputs what the snapshot did."""
    make, shape = LAYERS[kind]
    then, now = nn.Sequential(make()), nn.Sequential(make())
    for parameter in [*then.parameters(), *now.parameters()]:
        nn.init.normal_(parameter)
    (linear_map,), _ = find_linear_maps(now)
    old, new = torch.randn(shape), torch.randn(shape)
    measured = [
        input_moments(now, [linear_map], [x], lambda m, b: m(b), full_width)[linear_map.weight]
        for x in (old, new)
    ]
    coefficient = solve_map(linear_map, *measured, Balance(1e-7, 1e-7, 0.5))
    before = named_weights(now)["0.weight"].detach().clone()
    merge_maps_(named_weights(now), named_weights(then), [coefficient])
    assert not torch.equal(now[0].weight, before)
    torch.testing.assert_close(now(old), then(old), rtol=1e-3, atol=1e-3)


def test_merging_is_rounded_once_and_spread_over_rows():
    linear_map = LinearMap("w", None, "linear", ("",), 6)
    live = {"w": normal(5, 9, 6).bfloat16()}
    then = {"w": normal(6, 9, 6).bfloat16()}
    taken = solve_map(linear_map, moments(OLD[:, :6]), moments(NEW[:, :6]), BALANCE)
    wide = live["w"].double()
    expected = (wide + taken.pull(then["w"].double() - wide)).bfloat16()
    merge_maps_(live, then, [taken])
    assert torch.equal(live["w"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [None, 3])
def test_weights_that_equal_their_copy_stay_equal_bit_for_bit(dtype, rank):
    live = {"w": NOW[:, :6].to(dtype), "b": NOW[:, 6].to(dtype)}
    then = {name: tensor.clone() for name, tensor in live.items()}
    taken = solve_map(MAP, moments(OLD, rank), moments(NEW, rank), BALANCE)
    merge_maps_(live, then, [taken])
    assert all(torch.equal(live[name], then[name]) for name in live)


def test_large_maps_are_merged_in_parts_to_the_same_result(monkeypatch):
    from recall_lightning.merging.coefficients import linear_maps as map_coefficients

    live, then = ({"w": side[:, :6], "b": side[:, 6]} for side in (NOW.clone(), THEN))
    taken = solve_map(MAP, moments(OLD), moments(NEW), BALANCE)
    monkeypatch.setattr(map_coefficients, "_ELEMENTS", 1)
    merge_maps_(live, then, [taken])
    torch.testing.assert_close(as_matrix(MAP, live), merged_by(taken))


def test_empty_moments_are_of_the_kind_that_measuring_gives():
    assert isinstance(empty_moments(MAP, torch.device("cpu")), FullMoments)
    assert empty_moments(MAP, torch.device("cpu"), 3, rank=50).rank == 7
