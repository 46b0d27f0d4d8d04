import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, LowRankMoments
from recall_lightning.merging.coefficients.kronecker import KroneckerCoefficient
from recall_lightning.merging.coefficients.linear_maps import (
    Balance,
    FullCoefficient,
    merge_maps_,
)
from recall_lightning.merging.coefficients.used_inputs import UsedInputsCoefficient
from recall_lightning.merging.rules import KfacImportance, KfacSubspace, MergeInputs, Subspace
from recall_lightning.merging.structure import Structure

BAG = LinearMap("w", None, "bag", ("",), 6)
USED = torch.tensor([True, True, False, True, False, False])


def bags(seed, columns):
    torch.manual_seed(seed)
    rows = torch.rand(40, 6)
    rows[:, ~columns] = 0
    return rows


OLD, NEW = bags(0, torch.tensor([True, True, True, False, True, False])), bags(1, USED)


def moments(rows, kind=FullMoments):
    empty = kind.empty(6) if kind is FullMoments else kind.empty(6, 6)
    empty.update(rows)
    return empty.mean()


def inputs(kind=FullMoments):
    outputs = FullMoments(torch.eye(4), torch.ones(()))
    return MergeInputs(
        Structure([Block("0", 24, 1.0, "0", ("w",))], [BAG]),
        importance={"w": torch.ones(6, 4)},
        old_moments={"w": moments(OLD, kind)},
        new_moments={"w": moments(NEW, kind)},
        old_output_moments={"w": outputs},
        new_output_moments={"w": outputs},
    )


def merged(rule, kind=FullMoments):
    torch.manual_seed(2)
    then = torch.randn(6, 4)
    live = torch.where(USED[:, None], then + torch.randn(6, 4), then)
    found = {"w": live.clone()}
    merge_maps_(found, {"w": then}, [rule.coefficients(inputs(kind))["w"]])
    return then, live, found["w"]


@pytest.mark.parametrize("kind", [FullMoments, LowRankMoments])
@pytest.mark.parametrize("rule", [Subspace(2.0), KfacSubspace(2.0), KfacImportance(1.0)])
def test_rows_that_the_new_task_never_used_stay_bit_for_bit(rule, kind):
    then, live, found = merged(rule, kind)
    assert torch.equal(found[~USED], then[~USED])
    assert not torch.equal(found[USED], live[USED])


@pytest.mark.parametrize("kind", [FullMoments, LowRankMoments])
def test_of_the_used_rows_the_sums_change_least(kind):
    """Least squares over old and new bags where the other rows cannot move."""
    then, live, found = merged(Subspace(2.0, ridge=1e-6, mix=0.0), kind)
    old, new = OLD[:, USED] / 40**0.5, NEW[:, USED] * (2 / 40) ** 0.5
    targets = torch.cat([old @ then[USED], new @ live[USED]])
    expected = torch.linalg.lstsq(torch.cat([old, new]), targets).solution
    torch.testing.assert_close(found[USED], expected, rtol=1e-3, atol=1e-3)


def test_curvature_of_bags_of_low_rank_counts_as_that_of_a_matrix():
    rule = KfacSubspace(2.0)
    *_, low = merged(rule, LowRankMoments)
    *_, full = merged(rule, FullMoments)
    assert isinstance(rule.coefficients(inputs(LowRankMoments))["w"].own, KroneckerCoefficient)
    torch.testing.assert_close(low, full, rtol=1e-3, atol=1e-4)


def test_its_figures_are_those_of_its_parts():
    old, new = (FullMoments(m.matrix[USED][:, USED], m.count) for m in map(moments, (OLD, NEW)))
    own = FullCoefficient.solve(
        LinearMap("w", None, "linear", ("",), 3), old, new, Balance(1, 0.1, 0)
    )
    others = torch.full((6,), 0.5)
    taken = UsedInputsCoefficient(BAG, USED, own, others)
    assert taken.mean == pytest.approx((own.mean + 0.5) / 2)
    assert (taken.gain, taken.condition) == (max(own.gain, 0.5), own.condition)
    assert taken.fits(torch.zeros(4, 6))
    assert not taken.fits(torch.zeros(4, 5))
    difference = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(taken.scaled(0.5).pull(difference), taken.pull(difference) / 2)
