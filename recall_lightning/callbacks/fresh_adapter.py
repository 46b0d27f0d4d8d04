"""A LoRA adapter a task: added to the base at the task's end."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.callbacks._trainer.optimizer_state import forget
from recall_lightning.callbacks._trainer.own_weights import refuse_own_weights
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.merging.lora.layers import add_to_base
from recall_lightning.weights.sharding import reshard


class FreshAdapter(TaskAwareCallback):
    """Add the adapter to its base at every task's end, and start the next task with a new one.

    The new adapter adds nothing yet, and the optimizer forgets what it knew of the old one, so the
    model stays the function that it was. It comes after the callbacks that merge:
    :class:`~recall_lightning.models.CausalLMModule` brings it along.

    Raises:
        MisconfigurationException: If the adapter's update is not finite, or the optimizer keeps
            weights of its own apart from its state.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer with weights of its own, which would bring the old adapter back."""
        super().on_train_start(trainer, pl_module)
        refuse_own_weights(trainer.optimizers, self, forgets=True)

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Add the adapter to the base."""
        reshard(pl_module)
        try:
            restarted = add_to_base(pl_module)
        except ValueError as error:
            raise MisconfigurationException(f"FreshAdapter: {error}") from error
        forget(trainer.optimizers, restarted)
