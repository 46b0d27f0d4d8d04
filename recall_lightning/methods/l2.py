"""L2-SP: a pull towards the weights that a task started from."""

from recall_lightning.methods.method import Method
from recall_lightning.methods.penalty import QuadraticPenalty


class L2ToSnapshot(QuadraticPenalty):
    """Adds strength/2 · ‖θ − θ_snapshot‖² to the loss, θ_snapshot being the weights at task start.

    Source: L2-SP (Li et al. 2018, arXiv 1802.01483), with their α as ``strength`` for every weight:
    there is no other term for a new head. Unlike weight decay it pulls towards the snapshot, and
    unlike decoupled weight decay it goes through the optimizer: Adam divides it by the size of the
    whole gradient. How and when it is added:
    :class:`~recall_lightning.methods.penalty.QuadraticPenalty`.

    Args:
        strength: What the penalty is multiplied by, 0 or more, in units of the loss a squared unit
            of weight.
        from_first_task: Whether the weights before the first task are worth keeping. False for a
            model that starts from random weights: then nothing happens in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For a negative strength or a strategy that shards the weights.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[L2ToSnapshot(strength=0.1)], logger=False)
    """

    def __init__(
        self,
        strength: float = 0.1,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(strength, from_first_task, task_epochs)


METHOD = Method(
    "l2", "L2 penalty towards the snapshot", L2ToSnapshot, keeps_first="from_first_task"
)
