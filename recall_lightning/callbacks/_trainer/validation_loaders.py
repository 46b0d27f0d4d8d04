"""How many validation dataloaders a fit has, before its first batch."""

from lightning.pytorch import Trainer


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
