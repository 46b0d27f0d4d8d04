"""The metric that a user names: what the validation that is going on has logged under its name."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def scores_by_loader(asking: str, trainer: Trainer, monitor: str, loaders: int) -> list[float]:
    """Read a validation's score on every dataloader, in ``on_validation_end``.

    They come from the validation's own records, and not from ``trainer.callback_metrics``, where
    training, an earlier validation and another number of dataloaders leave theirs under like names.
    Where several processes logged numbers that Lightning was not told to gather, they are gathered.

    Args:
        asking: The callback's name, for errors.
        trainer: The Trainer.
        monitor: The metric's name; ``{idx}`` in it stands for the loader's index.
        loaders: How many validation dataloaders there are.

    Raises:
        MisconfigurationException: If it was not logged as a score of each of them.
    """
    check_logged(asking, trainer, monitor, loaders)
    missing = loaders_without(trainer, monitor, loaders)
    if missing:
        names = sorted({each.meta.name for each in _logged(trainer)})
        raise MisconfigurationException(
            f"{asking}: monitor={monitor!r} was not logged for validation dataloader "
            f"{missing[0]}; logged were {', '.join(names) or 'no metrics'}"
        )
    found = [logged_for(trainer, monitor, loader, loaders) for loader in range(loaders)]
    return [_gathered(trainer, each) for each in found]


def loaders_without(trainer: Trainer, monitor: str, loaders: int) -> list[int]:
    """Return the indices of the dataloaders that nothing was logged for under the name."""
    found = [logged_for(trainer, monitor, loader, loaders) for loader in range(loaders)]
    return [loader for loader, each in enumerate(found) if each is None]


def check_logged(
    asking: str, trainer: Trainer, monitor: str, loaders: int, whole: bool = True
) -> None:
    """Refuse what was logged under the name, as far as it is there, and is no dataloader's score.

    Args:
        asking: The callback's name, for errors.
        trainer: The Trainer.
        monitor: The metric's name; ``{idx}`` in it stands for the loader's index.
        loaders: How many validation dataloaders there are.
        whole: Whether the validation was one; in a sanity check's few batches a dataloader may have
            nothing logged yet.

    Raises:
        MisconfigurationException: If it is not one.
    """
    for loader in range(loaders):
        named = _called(trainer, monitor, loader)
        found = logged_for(trainer, monitor, loader, loaders)
        if found is not None:
            _check_reduction(asking, monitor, found)
        elif any(each.meta.on_epoch for each in named):
            if whole or "{idx}" in monitor or named[-1].meta.dataloader_idx is None:
                said = _of_no_loader(asking, monitor, loader, loaders, named)
                raise MisconfigurationException(said)
        elif named:
            raise MisconfigurationException(
                f"{asking}: monitor={monitor!r} was logged with on_epoch=False, for single batches "
                "alone: log it with on_epoch=True"
            )


def logged_for(trainer: Trainer, monitor: str, loader: int, loaders: int) -> Any:
    """Return Lightning's record of what was logged for a dataloader; None if there is none yet.

    Args:
        trainer: The Trainer.
        monitor: The metric's name; ``{idx}`` in it stands for the loader's index.
        loader: Index of the dataloader.
        loaders: How many there are.
    """
    named_apart = loaders == 1 or "{idx}" in monitor
    found = None
    for each in _called(trainer, monitor, loader):
        of_loader = each.meta.dataloader_idx
        numbered = each.meta.name.endswith(f"/dataloader_idx_{loader}")
        whose = of_loader == loader or (of_loader is None and (named_apart or numbered))
        if whose and each.meta.on_epoch:
            found = each  # of two with one name Lightning keeps the last, too
    return found


def _logged(trainer: Trainer) -> list[Any]:
    """Return the records of what was logged since this validation began."""
    results = trainer._results
    return [] if results is None else [each for each in results.values() if not each.has_reset]


def _called(trainer: Trainer, monitor: str, loader: int) -> list[Any]:
    name = monitor.replace("{idx}", str(loader))
    names = (name, f"{name}/dataloader_idx_{loader}")
    return [
        each
        for each in _logged(trainer)
        if each.meta.name in names or each.meta.forked_name(on_step=False) in names
    ]


def _of_no_loader(asking: str, monitor: str, loader: int, loaders: int, named: list[Any]) -> str:
    others = sorted({each.meta.dataloader_idx for each in named} - {None})
    if "{idx}" in monitor:
        return (
            f"{asking}: {monitor.replace('{idx}', str(loader))!r} was logged for validation "
            f"dataloader {others[0]}, not {loader}: number the names like the dataloaders, from 0"
        )
    if others:
        return (
            f"{asking}: monitor={monitor!r} was logged for validation dataloader {others[0]}, and "
            f"not for dataloader {loader}: log it for each of them"
        )
    return (
        f"{asking}: monitor={monitor!r} was logged once for all {loaders} validation dataloaders "
        f"(in {named[-1].meta.fx}): log it in validation_step, where each has its own, or once for "
        "each under a name that holds its index, such as 'val_0/acc' with monitor='val_{idx}/acc'"
    )


def _check_reduction(asking: str, monitor: str, logged: Any) -> None:
    if logged.is_tensor and not logged.meta.is_mean_reduction:
        raise MisconfigurationException(
            f"{asking}: monitor={monitor!r} is logged with reduce_fx="
            f"{logged.meta.reduce_fx.__name__!r} over batches, which is no score of a dataset: log "
            "a mean, or a torchmetrics object"
        )
    if logged.meta.sync.rank_zero_only and logged.is_tensor:
        raise MisconfigurationException(
            f"{asking}: monitor={monitor!r} is logged with rank_zero_only=True, which no other "
            "process can read: leave it out, and log with sync_dist=True"
        )


def _gathered(trainer: Trainer, logged: Any) -> float:
    """Return a record's value over all processes."""
    if trainer.world_size == 1 or not logged.is_tensor or logged.meta.sync.should:
        return float(logged.compute())
    parts = (logged.value.clone(), logged.cumulated_batch_size.clone())
    total, weight = (trainer.strategy.reduce(each, reduce_op="sum") for each in parts)
    return float(total / weight)
