"""Two processes, one after the other: what one adds is what the other has measured."""

import torch

from recall_lightning.measuring.moments import FullMoments, LowRankMoments, RowCounts
from recall_lightning.recall.process_means import (
    mean_over_processes,
    mean_where_all_have,
)


class Two:
    """The Trainer of a process whose neighbour sends given tensors, one a call."""

    world_size = 2

    def __init__(self, *others):
        self.strategy = self
        self.others = list(others)

    def reduce(self, tensor, reduce_op):
        assert reduce_op == "mean"
        return (tensor + self.others.pop(0)) / 2

    def all_gather(self, tensor):
        return torch.stack([tensor, self.others.pop(0)])


def full(*diagonal):
    return FullMoments(torch.diag(torch.tensor(diagonal)), torch.tensor(1.0))


ONE = torch.tensor(1.0)


def test_a_map_that_both_have_run_is_averaged():
    both = Two(torch.tensor([1.0]), torch.diag(torch.tensor([3.0, 0.0])))
    together = mean_over_processes(both, {"a": full(1.0, 2.0)}, {"a": full(0.0, 0.0)})
    torch.testing.assert_close(together["a"].matrix, torch.diag(torch.tensor([2.0, 1.0])))
    assert both.others == []


def test_a_map_that_one_has_run_is_as_that_one_has_it_whichever_it_is():
    nothing = {"a": full(0.0, 0.0), "b": full(0.0, 0.0), "c": full(0.0, 0.0)}
    two = Two(torch.tensor([0.0, 1.0, 0.0]), torch.zeros(2, 2), full(4.0, 6.0).matrix)
    together = mean_over_processes(two, {"a": full(1.0, 2.0)}, nothing)
    assert set(together) == {"a", "b"}  # and nobody ran c
    torch.testing.assert_close(together["a"].matrix, full(1.0, 2.0).matrix)
    torch.testing.assert_close(together["b"].matrix, full(4.0, 6.0).matrix)


def test_lookup_counts_are_averaged():
    two = Two(torch.tensor([1.0]), torch.tensor([0.0, 1.0]))
    own, empty = (RowCounts(torch.tensor(c), ONE) for c in ([1.0, 0.0], [0.0, 0.0]))
    torch.testing.assert_close(
        mean_over_processes(two, {"a": own}, {"a": empty})["a"].counts, torch.tensor([0.5, 0.5])
    )


def test_moments_of_low_rank_are_averaged_within_their_rank():
    """Two of rank 2 fit into 5 directions exactly, and one has fewer rows than the rank."""
    generator = torch.Generator().manual_seed(0)
    own, other = (
        LowRankMoments(
            torch.randn(2, 8, generator=generator), torch.rand(8, generator=generator), ONE, 5
        )
        for _ in range(2)
    )
    padded = torch.nn.functional.pad(other.factor, (0, 0, 0, 3))
    two = Two(ONE[None], other.diagonal, padded)
    (together,) = mean_over_processes(two, {"a": own}, {"a": LowRankMoments.empty(8, 5)}).values()

    def dense(moments):
        return moments.factor.T @ moments.factor + torch.diag(moments.diagonal)

    assert together.rank == 5
    torch.testing.assert_close(dense(together), (dense(own) + dense(other)) / 2)


def test_of_curvature_what_one_lacks_is_left_out():
    two = Two(torch.tensor([1.0, 0.0]), 3 * torch.eye(2))
    own = {"a": full(1.0, 1.0), "b": full(1.0, 1.0)}
    together = mean_where_all_have(two, own, ["a", "b"], torch.device("cpu"))
    assert set(together) == {"a"}
    torch.testing.assert_close(together["a"].matrix, 2 * torch.eye(2))


def test_the_noise_of_a_mean_is_a_quarter_of_the_sum_of_both():
    own = FullMoments(torch.eye(2), ONE, torch.tensor(3.0))
    two = Two(torch.tensor([1.0]), torch.eye(2), torch.tensor(5.0))
    together = mean_where_all_have(two, {"a": own}, ["a"], torch.device("cpu"))
    assert float(together["a"].noise) == 2.0
    thin = LowRankMoments.of(own, 2)
    two = Two(torch.tensor([1.0]), thin.diagonal, thin.factor, torch.tensor(5.0))
    together = mean_where_all_have(two, {"a": thin}, ["a"], torch.device("cpu"))
    assert float(together["a"].noise) == 2.0


def test_what_a_process_has_measured_is_left_as_it_was():
    own = full(1.0, 2.0)
    mean_over_processes(Two(ONE[None], torch.zeros(2, 2)), {"a": own}, {"a": full(0.0, 0.0)})
    torch.testing.assert_close(own.matrix, full(1.0, 2.0).matrix)
