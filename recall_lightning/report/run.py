"""A run's folder, read: what a report is made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recall_lightning.cli.run_config import used_settings
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.metrics.task_matrix_file import read_task_matrix

# what a merge measured block by block or of the model; None in a file is a number that is none
_MEASURED = ("coefficient", "drift", "divergence")


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        name: How the report calls it.
        record: Of ``task_matrix.json``.
        exceeded: The limits that were not kept; None where that is not known.
        merges: Of ``merges.json``, a dict a merge; None without that file.
        settings: Of ``config.yaml``, those that were used; None without that file.
        environment: Of ``environment.json``; None without that file.
    """

    name: str
    record: TaskRecord
    exceeded: Sequence[Mapping[str, Any]] | None = None
    merges: Sequence[Mapping[str, Any]] | None = None
    settings: Mapping[str, Any] | None = None
    environment: Mapping[str, str] | None = None

    @property
    def method(self) -> str:
        """How it was trained; of a Trainer of the user's own, whether anything was merged."""
        own = "own Trainer" if self.merges is None else "own Trainer, with merges"
        return str((self.settings or {}).get("method", own))

    @property
    def last_merges(self) -> dict[str, Mapping[str, Any]]:
        """The last merge of each task by the task's name, with the number of its visit."""
        by_visit = {merge["visit"]: merge for merge in self.merges or []}
        return {self.task_of(merge): merge for merge in by_visit.values()}

    def task_of(self, merge: Mapping[str, Any]) -> str:
        """Return the name of the task in which a merge was made."""
        if "name" in merge:  # of a task that was found, of which the record knows nothing
            return str(merge["name"])
        visit, names = merge["visit"], self.record.task_names
        if visit < len(self.record.matrix):
            return self.record.visit_name(visit)
        task = merge["task"]
        return names[task] if task < len(names) else f"task {task}"


def read_run(folder: Path, name: str, beside: Path | None = None) -> Run:
    """Read a run's folder.

    Args:
        folder: The one with ``task_matrix.json``.
        name: How the report is to call it.
        beside: Another folder with the rest of the run's files, where they are not in that one.

    Raises:
        ValueError: Naming the file that is missing or not of its form.
        OSError: If a file cannot be read.
    """
    if not (folder / "task_matrix.json").is_file():
        raise ValueError(
            f"{folder} holds no task_matrix.json, which ForgettingMonitor writes after each task: "
            "name a run's folder"
        )
    content = _json(folder / "task_matrix.json", dict)
    try:
        record = read_task_matrix(content)
    except ValueError as error:
        raise ValueError(f"{folder / 'task_matrix.json'}: {error}") from error

    def found(file: str) -> Path | None:
        places = [each / file for each in (folder, beside) if each is not None]
        return next((place for place in places if place.is_file()), None)

    merges, config, environment = map(found, ("merges.json", "config.yaml", "environment.json"))
    return Run(
        name,
        record,
        content.get("exceeded"),
        None if merges is None else _merges(merges),
        None if config is None else _settings(config),
        None if environment is None else _json(environment, dict),
    )


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of folders' paths, of two parts or more, that are all different.

    Raises:
        ValueError: If a folder is there twice.

    Example:
        >>> distinct_names([Path("runs/plain/version_0"), Path("runs/recall/version_0")])
        ['plain/version_0', 'recall/version_0']
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError("a run is named twice: name each once")
    for length in range(2, max(len(path.parts) for path in paths) + 2):  # all are "version_0"
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _merges(path: Path) -> list[dict[str, Any]]:
    merges = _json(path, list)
    try:
        for merge in merges:
            merge["step"], merge["task"], merge["visit"]  # all needed
            for what in _MEASURED:
                values = merge.get(what, {})
                merge[what] = {n: math.nan if v is None else float(v) for n, v in values.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no merges as RecallCallback writes them ({error!r}): remove it"
        ) from error
    return merges


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML ({error}): mend or remove it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold settings, as 'name: value'")
    return used_settings(config) if "method" in config else config


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): mend or remove it") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold {'an object' if kind is dict else 'a list'} of JSON")
    return content
