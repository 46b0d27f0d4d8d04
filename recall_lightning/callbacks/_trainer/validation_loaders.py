"""The validation dataloaders of a fit, before its first batch: how many, and in which order."""

from typing import Any
from weakref import WeakKeyDictionary, ref

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import CombinedLoader

_SEEN: WeakKeyDictionary[Callback, list["ref[Any] | None"]] = WeakKeyDictionary()
"""Callbacks to the data sets that were last scored for them, as far as they can be told again."""


def validation_batches(trainer: Trainer) -> list[int | float]:
    """Return the batches of each validation dataloader, in ``on_train_start`` or later.

    Lightning may know them: it loads them for the sanity check, or before an epoch that validates.
    Where neither came yet, it is had to load them now, as it would then.

    Args:
        trainer: The Trainer.

    Returns:
        Empty where nothing will be validated.
    """
    if not trainer.enable_validation:
        return []
    if not trainer.num_val_batches:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return list(trainer.num_val_batches)


def moved_loader(callback: Callback, loaders: Any) -> tuple[int, int] | None:
    """Tell which dataloader is in another place than when scores were read last.

    They are told by their data sets, the same objects in new dataloaders too; data sets that are
    there twice, or are new, tell nothing.

    Args:
        callback: Who reads them.
        loaders: Those of this fit, as the Trainer has them.

    Returns:
        The place of one now, and then; None where none has moved.
    """
    now = _data_sets(loaders)
    then = [None if known is None else known() for known in _SEEN.get(callback, [])]
    for place, data in enumerate(now):
        before = [number for number, known in enumerate(then) if known is data]
        alone = data is not None and len(before) == 1 and sum(data is one for one in now) == 1
        if alone and before != [place]:
            return place, before[0]
    return None


def note_loaders(callback: Callback, loaders: Any) -> None:
    """Note the places of dataloaders whose scores are read.

    Args:
        callback: Who reads them.
        loaders: As for :func:`moved_loader`.
    """
    _SEEN[callback] = [_told_again(data) for data in _data_sets(loaders)]


def _data_sets(loaders: Any) -> list[Any]:
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
    return [getattr(loader, "dataset", None) for loader in combined.flattened]


def _told_again(data: Any) -> "ref[Any] | None":
    try:
        return ref(data)
    except TypeError:  # as of a list
        return None
