"""``task_matrix.json``: a record as a run's folder has it, and as it is read back."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recall_lightning.checks import FormError
from recall_lightning.metrics.record import (
    FORGETTING_VARIANT,
    FoundBoundary,
    TaskRecord,
    check_scores,
)
from recall_lightning.weights.atomic import write_whole


def write_task_matrix(
    record: TaskRecord, folder: Path, exceeded: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write ``task_matrix.json`` into a folder, whole or not at all.

    Args:
        record: What was measured.
        folder: Which.
        exceeded: The limits that were not kept, as ``ForgettingMonitor.exceeded`` has them.

    Raises:
        OSError: If it cannot be written.
    """
    content: dict[str, Any] = {
        "monitor": record.score_name,
        "mode": "max" if record.higher_is_better else "min",
        "tasks": record.task_names,
        "before": plain_json(record.before),
        "matrix": [plain_json(row) for row in record.matrix],
        "trained": record.trained,
        "rolled_back": record.rolled_back,
        "boundaries": [list(boundary) for boundary in record.boundaries],
        "exceeded": [plain_json(each) for each in exceeded],
        "metrics": record.summary(),
        "forgetting_variant": FORGETTING_VARIANT,
        "seconds": record.seconds,
        "measurements": [
            {k: v if k == "step" else plain_json(v) for k, v in measured.items()}
            for measured in record.measurements
        ],
    }
    if record.probe_names:
        content["probes"] = {
            "names": record.probe_names,
            "before": plain_json(record.probes_before),
            "matrix": [plain_json(row) for row in record.probes],
        }
    for name in ("retuned", "measured_early"):
        if rows := getattr(record, name):
            content[name] = rows
    if record.found_boundaries is not None:
        content["found_boundaries"] = record.found_boundaries
    write_whole(folder / "task_matrix.json", json.dumps(content, indent=1))


def read_task_matrix(content: Mapping[str, Any]) -> TaskRecord:
    """Return the record of which :func:`write_task_matrix` wrote this, read as JSON.

    Raises:
        ValueError: If it is not of that form.

    Example:
        >>> content = {"monitor": "val/acc", "mode": "max", "tasks": ["a"], "matrix": [[0.5]]}
        >>> read_task_matrix(content).summary()["plasticity"]
        0.5
    """
    probes, found = content.get("probes") or {}, content.get("found_boundaries")
    try:
        if content["mode"] not in ("max", "min"):
            raise FormError(f"mode={content['mode']!r} must be 'max' or 'min'")
        before = [own and _from_json(own) for own in (content.get("before"), probes.get("before"))]
        record = TaskRecord(
            content["monitor"],
            content["mode"] == "max",
            list(content["tasks"]),
            [_from_json(row) for row in content["matrix"]],
            before[0],
            list(probes.get("names", [])),
            [_from_json(row) for row in probes.get("matrix", [])],
            before[1],
            [
                {name: v if name == "step" else _from_json(v) for name, v in measured.items()}
                for measured in content.get("measurements", [])
            ],
            [(step, name) for step, name in content.get("boundaries", [])],
            float(content.get("seconds", 0.0)),
            list(content.get("trained", [])),
            list(content.get("rolled_back", [])),
            None if found is None else [_found_boundary(each) for each in found],
            list(content.get("retuned", [])),
            list(content.get("measured_early", [])),
        )
        check_scores(vars(record))
        named = all(0 <= task < len(record.task_names) for task in record.trained)
    except KeyError as error:
        raise ValueError(f"it is no task matrix, it lacks {error}: name another run") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it is no task matrix ({error!r}): name another run") from error
    except ValueError as error:  # FormError, too
        raise ValueError(f"it is no task matrix ({error}): name another run") from error
    if not record.matrix or len(record.trained) != len(record.matrix) or not named:
        raise ValueError("it is no task matrix, its rows are not of its tasks: name another run")
    return record


def plain_json(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not know, by None, however deep they are.

    Example:
        >>> plain_json({"loss": [0.5, math.nan], "step": 3})
        {'loss': [0.5, None], 'step': 3}
    """
    if isinstance(value, Mapping):
        return {name: plain_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _found_boundary(content: Mapping[str, Any]) -> FoundBoundary:
    return {
        "visit": content["visit"],
        "step": content["step"],
        "began": content["began"],
        "signal": content["signal"],
    }


def _from_json(row: Sequence[float | None] | None) -> list[float]:
    """Return a row of scores as it was, but for infinities."""
    return [math.nan if score is None else float(score) for score in row or []]
