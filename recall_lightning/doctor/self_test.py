"""Half a minute that tries what every run does: train, merge, save and resume."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset

from recall_lightning.data.stream import TaskStream
from recall_lightning.models.classifier import ClassifierModule
from recall_lightning.models.mlp import MLP
from recall_lightning.recall.callback import RecallCallback
from recall_lightning.weights.lightning_checkpoint import read_checkpoint

_TASKS, _EPOCHS, _FEATURES, _SAMPLES, _BATCH = 2, 2, 8, 64, 8
_MERGES = 2 * _TASKS  # with every=0.5


def steps(folder: Path) -> Iterator[tuple[str, str]]:
    """Try one step after another, and yield its name and, once it has passed, what was seen.

    Each is yielded with an empty text before it is tried, so that the last name says what failed.

    Args:
        folder: Where checkpoints go.

    Raises:
        Exception: Whatever the step that fails raises.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [name for name, seen in steps(Path(folder)) if seen]
        ['fit', 'merge', 'checkpoint', 'resume']
    """
    yield "fit", ""
    trainer, recall = _fit(folder)
    yield "fit", f"{trainer.global_step} steps on {trainer.strategy.root_device.type}"

    yield "merge", ""
    shares = [share for record in recall.history for share in record["coefficient"].values()]
    if len(recall.history) != _MERGES or not all(0 < share < 1 for share in shares):
        raise RuntimeError(f"{len(recall.history)} merges of {_MERGES}, with the shares {shares}")
    yield "merge", f"{len(recall.history)} merges of {len(shares)} blocks"

    yield "checkpoint", ""
    file = folder / "epoch=0.ckpt"
    states = read_checkpoint(file)["callbacks"]
    if recall.state_key not in states:
        raise RuntimeError(f"the checkpoint holds no state of RecallCallback, but of {[*states]}")
    yield "checkpoint", f"{file.stat().st_size // 1024} KiB, read without unpickling objects"

    yield "resume", ""
    resumed, _ = _fit(folder / "resumed", file)
    apart = _furthest(trainer.model, resumed.model)
    if not apart <= (0 if trainer.strategy.root_device.type == "cpu" else 1e-4):
        raise RuntimeError(f"resumed after the first epoch, weights end up to {apart:.3g} apart")
    yield "resume", "the same weights" if apart else "the same weights, bit for bit"


def _fit(folder: Path, checkpoint: Path | None = None) -> tuple[Trainer, RecallCallback]:
    """Train a tiny model on a tiny stream, from its beginning or a checkpoint."""
    seed_everything(0, verbose=False)
    recall = RecallCallback(every=0.5)
    save = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1)
    trainer = Trainer(
        max_epochs=_TASKS * _EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recall, save],
    )
    model = ClassifierModule(MLP([_FEATURES, 16, 2]), num_classes=2)
    stream = TaskStream.from_datasets(
        [(_data(task), _data(task)) for task in range(_TASKS)],
        epochs_per_task=_EPOCHS,
        batch_size=_BATCH,
    )
    trainer.fit(model, datamodule=stream, ckpt_path=checkpoint)
    return trainer, recall


def _data(task: int) -> TensorDataset:
    """Two classes told apart by one feature, another in each task."""
    features = torch.randn(_SAMPLES, _FEATURES, generator=torch.Generator().manual_seed(task))
    return TensorDataset(features, (features[:, task] > 0).long())


def _furthest(one: Any, other: Any) -> float:
    """Return how far the weights of two models are apart at most; NaN where one has such."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    apart = [float((a.detach() - b.detach()).abs().max()) for a, b in pairs]
    return math.nan if any(map(math.isnan, apart)) else max(apart)
