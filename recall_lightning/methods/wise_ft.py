"""WiSE-FT: one average of the weights before and after a task."""

from recall_lightning.methods.method import Method
from recall_lightning.methods.sfa import SequentialFinetuningAveraging


class WiseFT(SequentialFinetuningAveraging):
    """Averages the weights once, at each task's end, with those at its start.

    θ ← (1 − strength) · θ + strength · θ_snapshot, for all weights alike. Sources: WiSE-FT (arXiv
    2109.01903), whose mixing coefficient α is 1 − ``strength``; with one model to merge it is
    LM-Cocktail (arXiv 2311.13534) with given weights. Both merge a fine-tuned model with its base;
    here task after task, each with the model before it.

    Args:
        strength: The snapshot's weight, in [0, 1).
        merge_first_task: Whether to merge after the first task too. False for a model that starts
            from random weights.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range; see
            :class:`~recall_lightning.RecallCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[WiseFT(strength=0.5)], logger=False)
    """

    def __init__(
        self,
        strength: float = 0.5,
        merge_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(1.0, strength, merge_first_task, task_epochs)


METHOD = Method(
    "wise_ft", "uniform averaging at a task's end", WiseFT, keeps_first="merge_first_task"
)
