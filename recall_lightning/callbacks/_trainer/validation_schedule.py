"""When a fit validates: whether that falls on a task's end."""

import math

from lightning.pytorch import Trainer


def check_validation_falls_on_end(trainer: Trainer, name: str, last_epoch: int | None) -> None:
    """Check that a validation comes after a task's last batch.

    Args:
        trainer: The Trainer, in a fit.
        name: The task's.
        last_epoch: The epoch that ends it, from 0; None where that is not known.

    Raises:
        ValueError: If none does, with what to set.
    """
    every, batches = trainer.check_val_every_n_epoch, trainer.num_training_batches
    interval = trainer.val_check_batch
    if every is not None and last_epoch is not None and (last_epoch + 1) % every:
        raise ValueError(
            f"task {name!r} ends with epoch {last_epoch} (from 0), and "
            f"check_val_every_n_epoch={every} does not validate then: set it to 1"
        )
    inside = every is not None and interval not in (None, math.inf) and batches != math.inf
    if inside and batches % interval:  # type: ignore[operator]
        raise ValueError(
            f"task {name!r} has {batches} batches an epoch, and validation every {interval} of "
            f"them (val_check_interval={trainer.val_check_interval}) does not fall on the last: "
            f"set {_intervals_that_do(int(batches), int(interval))}"  # type: ignore[arg-type]
        )


def _intervals_that_do(batches: int, interval: int) -> str:
    """Say what may be set so that a validation falls on an epoch's last batch.

    >>> _intervals_that_do(43, 21)
    'val_check_interval to 1.0, or to 21 with limit_train_batches=42'
    >>> _intervals_that_do(44, 10)
    'val_check_interval to 1.0, to 11, which divides 44, or to 10 with limit_train_batches=40'
    """
    divisors = [each for each in range(2, batches) if batches % each == 0]
    nearest = min(divisors, key=lambda each: abs(each - interval), default=None)
    dividing = "" if nearest is None else f" to {nearest}, which divides {batches},"
    return (
        f"val_check_interval to 1.0,{dividing} or to {interval} with "
        f"limit_train_batches={batches // interval * interval}"
    )
