"""What several processes have measured, as one."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer

from recall_lightning.measuring.moments import FullMoments, LowRankMoments, Moments, RowCounts


def sum_over_processes(trainer: Trainer, own: float) -> float:
    """Add a number of each process."""
    if trainer.world_size == 1:
        return own
    total = torch.tensor(own, dtype=torch.float32, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(total, reduce_op="sum"))


def summed(trainer: Trainer, own: torch.Tensor) -> torch.Tensor:
    """Add a tensor of each process, all of one shape."""
    return _reduced(trainer, own, "sum")


def averaged(trainer: Trainer, own: torch.Tensor) -> torch.Tensor:
    """Average a tensor of each process, all of one shape."""
    return _reduced(trainer, own, "mean")


def mean_over_processes(
    trainer: Trainer, moments: Mapping[str, Moments], empty: Mapping[str, Moments]
) -> dict[str, Moments]:
    """Average over the processes, each of which has run its own batches through a map.

    Args:
        trainer: The Trainer.
        moments: What this process has measured, by name.
        empty: Moments of no input for every map, the same maps on all processes.

    Returns:
        Moments of each map that any process has run, averaged over those.
    """
    used = averaged(trainer, _who_has(moments, list(empty), _device(empty)))
    together = {}
    for (name, nothing), part in zip(empty.items(), used.tolist(), strict=True):
        if part > 0:
            together[name] = _averaged_moments(trainer, moments.get(name, nothing)).scaled(1 / part)
    return together


def mean_where_all_have(
    trainer: Trainer,
    moments: Mapping[str, Moments],
    names: Sequence[str],
    device: torch.device,
) -> dict[str, Moments]:
    """Average over the processes; what not all of them have is left out."""
    used = averaged(trainer, _who_has(moments, names, device))
    common = [name for name, part in zip(names, used.tolist(), strict=True) if part == 1]
    return {name: _averaged_moments(trainer, moments[name]) for name in common}


def _who_has(
    moments: Mapping[str, object], names: Sequence[str], device: torch.device
) -> torch.Tensor:
    return torch.tensor([float(name in moments) for name in names], device=device)


def _device(moments: Mapping[str, Moments]) -> torch.device:
    return next((one.count.device for one in moments.values()), torch.device("cpu"))


def _averaged_moments(trainer: Trainer, own: Moments) -> Moments:
    if isinstance(own, FullMoments):
        return FullMoments(averaged(trainer, own.matrix), own.count, _of_mean(trainer, own.noise))
    if isinstance(own, RowCounts):
        return RowCounts(averaged(trainer, own.counts), own.count)
    assert isinstance(own, LowRankMoments)
    return _gathered(trainer, own)


def _reduced(trainer: Trainer, own: torch.Tensor, how: str) -> torch.Tensor:
    reduced = trainer.strategy.reduce(own.clone(), reduce_op=how)
    assert isinstance(reduced, torch.Tensor)
    return reduced


def _gathered(trainer: Trainer, own: LowRankMoments) -> LowRankMoments:
    """Average moments of low rank, whose factors are stacked instead of added."""
    short = own.rank - len(own.factor)
    padded = torch.nn.functional.pad(own.factor, (0, 0, 0, short))  # all_gather wants one shape
    diagonals = trainer.strategy.all_gather(own.diagonal)
    factors = trainer.strategy.all_gather(padded)
    share = 1 / trainer.world_size
    total = LowRankMoments(factors[0], diagonals[0], own.count, own.rank).scaled(share)
    for factor, diagonal in zip(factors[1:], diagonals[1:], strict=True):
        total = total.plus(LowRankMoments(factor, diagonal, own.count, own.rank).scaled(share))
    noise = _of_mean(trainer, own.noise)
    return LowRankMoments(total.factor, total.diagonal, own.count, own.rank, noise)


def _of_mean(trainer: Trainer, noise: torch.Tensor | None) -> torch.Tensor | None:
    """Return the noise of a mean over processes, whose batches are not the same."""
    return None if noise is None else averaged(trainer, noise) / trainer.world_size
