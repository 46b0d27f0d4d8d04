"""What a run was started with, where people look for it: in its folder, and in W&B."""

from collections.abc import Mapping
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from recall_lightning.callbacks._trainer.loggers import log_config, run_folder
from recall_lightning.data import TaskStream
from recall_lightning.methods.table import METHODS
from recall_lightning.weights.atomic import write_whole


class SaveRunConfig(SaveConfigCallback):
    """Save ``config.yaml`` beside the run's other files, and what it says in W&B's config."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once."""
        folder = run_folder(trainer)
        if folder is None or self.already_saved or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # dump, as save writes models from a mapping in a form that cannot be read back
        content = self.parser.dump(self.config, skip_none=False)
        write_whole(folder / "config.yaml", content)
        recipes = [str(file) for file in self.config.get("config") or []]
        settings = used_settings(yaml.safe_load(content)) | {"recipe": recipes}
        stream = getattr(trainer, "datamodule", None)
        if isinstance(stream, TaskStream):
            settings["tasks"] = list(stream.task_names)
        log_config(trainer, settings)
        self.already_saved = True


def used_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run uses of all settings: of the methods the chosen one alone.

    Example:
        >>> used_settings({"method": "l2", "l2": {"strength": 1.0}, "ewc": {"strength": 1.0}})
        {'method': 'l2', 'l2': {'strength': 1.0}}
    """
    unused = {"config", *METHODS} - {config["method"]}
    return {name: value for name, value in config.items() if name not in unused}
