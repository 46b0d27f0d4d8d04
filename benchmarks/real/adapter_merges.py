"""Merges of task adapters by published tools: PEFT's TIES and DARE, beside merging in training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer

from recall_lightning.callbacks._trainer.loggers import run_folder
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.checks import check_choice
from recall_lightning.measuring.isolation import isolated_rng

COMBINATIONS = ("linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_ties_svd")
"""What PEFT's ``add_weighted_adapter`` is asked for; with svd it merges ΔW, else A and B apart."""

_MERGED = "merged"

Score = TypeVar("Score")


class SaveTaskAdapters(TaskAwareCallback):
    """Saves the adapter at every task's end, in a folder of its own, as PEFT saves adapters.

    Args:
        folder: Where the folders ``task_0``, ``task_1`` … go, numbered by visit; by default
            ``adapters`` in the run's folder.
        task_epochs: Epochs a task, only where no datamodule tells the task.
    """

    def __init__(
        self, folder: str | Path | None = None, task_epochs: int | list[int] | None = None
    ) -> None:
        super().__init__(task_epochs)
        self.folder = folder

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Save it."""
        folder = self.folder or f"{run_folder(trainer)}/adapters"
        if trainer.is_global_zero:
            model: Any = pl_module.model
            model.save_pretrained(f"{folder}/task_{self.visit}")


def adapters_in(folder: Path) -> list[Path]:
    """Return the folders that :class:`SaveTaskAdapters` has left, in the order of training.

    Args:
        folder: Its own, or that of a run.
    """
    found = folder.rglob("task_*/adapter_config.json")
    return sorted(
        (file.parent for file in found), key=lambda path: int(path.name.removeprefix("task_"))
    )


def use_merged_adapter(
    model: Any,
    folders: Sequence[str | Path],
    combination: str,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    seed: int = 0,
) -> None:
    """Load the adapters of tasks into their base, merge them by PEFT, and have the model use that.

    Args:
        model: A ``PeftModel`` on the base that the adapters were trained on.
        folders: The adapters, as ``save_pretrained`` writes them.
        combination: One of :data:`COMBINATIONS`.
        weights: One an adapter; by default all 1, as in TIES (arXiv 2306.01708) and DARE (arXiv
            2311.03099) before their scale, and equal parts of 1 for those that take a mean.
        density: The part of entries that TIES and DARE keep; TIES' own is 0.2.
        seed: Of what DARE drops.

    Raises:
        ValueError: For a combination that is none of these.
    """
    check_choice("combination", combination, *COMBINATIONS)
    names = [f"task_{index}" for index in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    if weights is None:
        averages = combination in ("linear", "svd")
        weights = [1 / len(names) if averages else 1.0] * len(names)
    drops = {} if combination in ("linear", "svd") else {"density": density}
    with isolated_rng():
        torch.manual_seed(seed)
        model.add_weighted_adapter(names, list(weights), _MERGED, combination, **drops)
    model.set_adapter(_MERGED)
    for name in names:
        model.delete_adapter(name)


def merged_scores(
    model: Any,
    folders: Sequence[str | Path],
    evaluate: Callable[[], Score],
    density: float = 0.2,
    combinations: Sequence[str] = COMBINATIONS,
) -> dict[str, Score]:
    """Evaluate every published merge of adapters, and leave the model with its own.

    Args:
        model: As for :func:`use_merged_adapter`.
        folders: Likewise.
        evaluate: Gives the model's score.
        density: The part of entries that TIES and DARE keep.
        combinations: Which merges.
    """
    scores, (own,) = {}, model.active_adapters
    for combination in combinations:
        use_merged_adapter(model, folders, combination, density=density)
        scores[combination] = evaluate()
        model.set_adapter(own)
        model.delete_adapter(_MERGED)
    return scores
