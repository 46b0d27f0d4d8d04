"""SFA: sequential fine-tuning averaging."""

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.merging.rules import Uniform
from recall_lightning.methods.method import Method
from recall_lightning.recall.callback import RecallCallback


class SequentialFinetuningAveraging(RecallCallback):
    """Averages the weights, every so often and at a task's end, with those at its start.

    θ ← (1 − strength) · θ + strength · θ_snapshot, for all weights alike. Source: SFA (arXiv
    2501.05559), with the paper's weight of the earlier model as ``strength``. The snapshot is the
    model at the task's start, averages of earlier tasks included.

    Args:
        every: Interval between merges. A float in (0, 1] is a fraction of the task, an int a number
            of optimizer steps. The task's last step always merges.
        strength: The snapshot's weight in every merge, in [0, 1).
        merge_first_task: Whether to merge in the first task too. False for a model that starts from
            random weights.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range; see
            :class:`~recall_lightning.RecallCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SequentialFinetuningAveraging(every=0.25)], logger=False)
    """

    def __init__(
        self,
        every: int | float = 0.25,
        strength: float = 0.3,
        merge_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        with misconfiguration("strength"):
            rule = Uniform(strength)
        super().__init__(
            every=every,
            rule=rule,
            merge_first_task=merge_first_task,
            task_epochs=task_epochs,
        )


METHOD = Method(
    "sfa",
    "uniform averaging in the loop",
    SequentialFinetuningAveraging,
    keeps_first="merge_first_task",
)
