"""Merges that no checkpoint holds, of which a warning tells."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class UnsavedMerges:
    """Knows whether a checkpoint was written since the last merge.

    Attributes:
        last_is_saved: Whether one was, or nothing was merged yet.
    """

    def __init__(self) -> None:
        self.last_is_saved = True

    def tell_of_an_early_stop(self) -> None:
        """Say that a fit that was stopped early has merged after its last checkpoint."""
        rank_zero_warn(
            "the fit stopped early, so the merge at its task's end came after the last "
            "validation and checkpoint: validate and save the model once more (a checkpoint "
            "from before holds the task's last batches)"
        )

    def tell(self, trainer: Trainer) -> None:
        """Say so where all checkpoints are from before the last merge, and the user wants some."""
        savers = trainer.checkpoint_callbacks
        whole = [each for each in savers if not getattr(each, "save_weights_only", False)]
        if whole and not self.last_is_saved:
            rank_zero_warn(
                "no checkpoint was written after the last merge, at the end of the last task: save "
                "the model once more, as by trainer.save_checkpoint(…), or let a ModelCheckpoint "
                "of its own save at the end of epochs or validations"
            )
