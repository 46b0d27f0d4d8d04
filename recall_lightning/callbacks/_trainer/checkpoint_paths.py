"""Where checkpoints are saved, which Lightning tells no callback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer

Saved = Callable[[str], None]


class NotedCheckpointIO(CheckpointIO):
    """Saves and loads as another plugin does, and tells of every path that was saved to.

    Args:
        inner: The other plugin.
        saved: Called with each path, in the process that saves.
    """

    def __init__(self, inner: CheckpointIO, saved: Saved) -> None:
        self.inner = inner
        self.saved = saved

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save, then tell."""
        self.inner.save_checkpoint(checkpoint, path, storage_options)
        self.saved(str(path))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Load as the other does."""
        return self.inner.load_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove as the other does."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """End as the other does."""
        self.inner.teardown()


def note_checkpoints(trainer: Trainer, saved: Saved) -> None:
    """Have ``saved`` called with the path of every checkpoint that a Trainer saves from now on.

    That goes on after a fit, when checkpoints are saved by hand. A second call changes nothing.
    """
    io: Any = trainer.strategy.checkpoint_io
    layer = io
    while isinstance(layer, NotedCheckpointIO):
        if layer.saved == saved:
            return
        layer = layer.inner
    trainer.strategy.checkpoint_io = NotedCheckpointIO(io, saved)
