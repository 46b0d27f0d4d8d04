"""Merges that no checkpoint holds, of which a warning tells."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def tell_of_an_early_stop() -> None:
    """Say that a fit that was stopped early has merged after its last checkpoint."""
    rank_zero_warn(
        "the fit stopped early, so the merge at its task's end came after the last validation and "
        "checkpoint: trainer.validate(model, …) and trainer.save_checkpoint(…) now (a checkpoint "
        "from before holds the task's last batches)"
    )


def tell_of_an_unsaved_merge(trainer: Trainer) -> None:
    """Say that all checkpoints are from before the last merge, where the user wants some."""
    savers = trainer.checkpoint_callbacks
    if any(not getattr(each, "save_weights_only", False) for each in savers):
        rank_zero_warn(
            "no checkpoint was written after the merge at the end of the fit's last task: save "
            "the model once more, as by trainer.save_checkpoint(…), or let a ModelCheckpoint "
            "of its own save at the end of epochs or validations"
        )
