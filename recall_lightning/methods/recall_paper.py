"""RECALL as its paper has it, a scalar a block: after training, or in the loop."""

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.merging.rules import Rbf
from recall_lightning.methods.method import Method
from recall_lightning.recall.callback import RecallCallback
from recall_lightning.recall.migration import rename_states
from recall_lightning.recall.settings import SampleSettings


class RecallPaper(RecallCallback):
    """Merges at each task's end, block by block, by the similarity of hidden representations.

    Source: RECALL (EMNLP 2025, arXiv 2510.20479) with two models, the one at the task's start and
    the one at its end: an RBF kernel over typical samples of the new task, a softmax over the
    models, no data of earlier tasks. Where the paper leaves a choice open (the kernel's width, the
    temperature, the number of samples), the defaults are those of
    :class:`~recall_lightning.RecallCallback`. To merge in the loop, too, by an ``every`` below 1,
    is this project's; the coefficients stay the paper's, not scaled.

    Args:
        every: Interval between merges. A float in (0, 1] is a fraction of the task, an int a number
            of optimizer steps. The task's last step always merges; 1.0 is the paper's, once.
        temperature: τ of the softmax over similarities, > 0; at 1 the snapshot gets 0.269 to 0.5.
        sigma: Width of the RBF kernel in units of the hidden states; ``"median"`` takes it from
            the snapshot's own states, block by block.
        typical_samples: How many typical samples to measure on, per process.
        pool_size: How many candidates they are chosen from, by k-means.
        merge_first_task: Whether to merge in the first task too. False for a model that starts
            from random weights.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range; see
            :class:`~recall_lightning.RecallCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RecallPaper()], logger=False)
    """

    def __init__(
        self,
        every: int | float = 1.0,
        temperature: float = 1.0,
        sigma: float | Literal["median"] = "median",
        typical_samples: int = 32,
        pool_size: int = 256,
        merge_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        with misconfiguration("RecallPaper"):
            rule = Rbf(temperature, sigma)
        super().__init__(
            every=every,
            rule=rule,
            samples=SampleSettings(typical_samples, pool_size),
            merge_first_task=merge_first_task,
            task_epochs=task_epochs,
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the state that was saved when merging in the loop was a class of its own."""
        rename_states(checkpoint["callbacks"])
        super().on_load_checkpoint(trainer, pl_module, checkpoint)


PAPER = Method(
    "recall_paper",
    "the paper's RECALL at a task's end",
    RecallPaper,
    keeps_first="merge_first_task",
)
LOOP = Method(
    "recall_paper_loop",
    "the paper's RECALL in the loop",
    RecallPaper,
    keeps_first="merge_first_task",
    defaults={"every": 0.25},
)
