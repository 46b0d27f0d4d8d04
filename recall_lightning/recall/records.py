"""What a merge was, as loggers take it, and as a file of the run."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.loggers import (
    Point,
    is_remote,
    log_figure,
    log_scalars,
    log_table,
    run_folder,
)
from recall_lightning.merging.blockwise import mean_by_block, worst_condition
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.rules import MergeInputs
from recall_lightning.metrics.task_matrix_file import plain_json
from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BY_BLOCK = ("similarity", "coefficient", "drift", "condition", "discarded_energy")
FRONT_COLUMNS = ("keep", "plasticity", "loss", "divergence", "merged")
ESTIMATES = {
    "estimated_forgetting": "divergence",
    "quadratic_forgetting": "quadratic_forgetting",
}
"""What is estimated of a task to what it is in an entry of ``history``."""
OF_BOTH = ("divergence", "quadratic_forgetting", "written_divergence")
"""What an entry of ``history`` has of live and of merged weights."""
_AXIS = "recall/step"
_OF_THE_MODEL = ("keep", "plasticity", "probe_seconds", "merge_seconds")


def block_values(
    visits: Mapping[int, int],
    inputs: Sequence[MergeInputs],
    weights: Sequence[Mapping[str, Coefficient]],
    pairs: Sequence[LoraPair],
    discarded: Mapping[str, float],
) -> dict[str, Any]:
    """Put what a merge measured and decided by block, as an entry of ``history`` has it.

    Args:
        visits: At whose start each snapshot was taken, oldest first, and the task of each.
        inputs: What the rule was given for each.
        weights: What each got, by weight name.
        pairs: The LoRA updates among the weights.
        discarded: Module of a LoRA update to what the return to its rank lost.
    """
    blocks, live = inputs[-1].blocks, inputs[-1].live
    similarity = [dict(each.similarity) for each in inputs]
    coefficient = [mean_by_block(by_name, blocks, live) for by_name in weights]
    values: dict[str, Any] = {"similarity": similarity[-1], "coefficient": coefficient[-1]}
    if condition := worst_condition(weights[-1], blocks):
        values["condition"] = condition
    if discarded:
        by_factor = {pair.a: discarded[pair.module] for pair in pairs}
        values["discarded_energy"] = mean_by_block(by_factor, blocks, live)
    if len(visits) > 1:
        columns = list(zip(visits.items(), similarity, coefficient, strict=True))
        values["earlier"] = [
            {"task": task, "visit": visit, "similarity": s, "coefficient": c}
            for (visit, task), s, c in columns[:-1]
        ]
    return values


def record_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of an entry of ``RecallCallback.history``.

    Example:
        >>> record = {"coefficient": {"net.0": 0.4}, "probe_seconds": 0.1, "merge_seconds": 0.2}
        >>> list(record_scalars(record))
        ['recall/coefficient/net.0', 'recall/probe_seconds', 'recall/merge_seconds']
    """
    groups = [("recall", name, record.get(name, {})) for name in _BY_BLOCK]
    for old in record.get("earlier", []):
        folder = f"recall/snapshot_{old['visit']}"
        groups += [(folder, name, old[name]) for name in ("similarity", "coefficient")]
    scalars = {
        f"{folder}/{name}/{block}": value
        for folder, name, values in groups
        for block, value in values.items()
    }
    for what in OF_BOTH:
        for name, value in record.get(what, {}).items():
            scalars[f"recall/{what}/{name}"] = value
    whole = {f"recall/{what}": record[what] for what in _OF_THE_MODEL if what in record}
    return scalars | whole


def of_both(what: str, live: float | None, merged: float | None) -> dict[str, dict[str, float]]:
    """Return what an entry of ``history`` says of the weights before a merge and after it.

    Example:
        >>> of_both("divergence", 0.5, 0.1), of_both("divergence", None, None)
        ({'divergence': {'live': 0.5, 'merged': 0.1}}, {})
    """
    return {} if live is None or merged is None else {what: {"live": live, "merged": merged}}


def log_merge(trainer: Trainer, record: Mapping[str, Any]) -> None:
    """Log the numbers of a merge over ``recall/step``: optimizer steps, over all fits.

    Args:
        trainer: The Trainer.
        record: The merge's entry of ``history``.
    """
    point = Point(_AXIS, record["step"])
    summaries = {f"recall/{what}/merged": "last,max" for what in OF_BOTH}
    log_scalars(trainer, record_scalars(record), point, summaries)


def log_task(
    trainer: Trainer, name: str, records: Sequence[Mapping[str, Any]], with_front: bool
) -> None:
    """Log what a task's merges were: coefficients over them, and the front of the last.

    Args:
        trainer: The Trainer.
        name: The task's.
        records: The merges' entries of ``history``.
        with_front: Whether there was a merge at the task's end, which may have a front.
    """
    if not records:
        return
    last = records[-1]
    point = Point(_AXIS, last["step"])
    log_figure(trainer, f"recall/coefficients/{name}", partial(records_figure, records), point)
    if with_front and last.get("front"):
        log_figure(trainer, f"recall/front/{name}", partial(front_figure, last, name), point)
        log_table(trainer, f"recall/front_table/{name}", FRONT_COLUMNS, front_rows(last), point)


def merges_file(trainer: Trainer) -> Path | None:
    """Return where this process writes ``merges.json``; all processes call this.

    That is in the run's folder, if there is one on a local disk.
    """
    folder = run_folder(trainer)
    local = folder is not None and not is_remote(trainer.loggers[0].save_dir)
    return folder / "merges.json" if folder and local and trainer.is_global_zero else None


def write_merges(
    path: Path | None, history: Sequence[Mapping[str, Any]], names_tasks: bool = False
) -> None:
    """Write merges, if there are some, into a file, or warn where that fails.

    Args:
        path: The file, if this process writes one.
        history: Of the callback.
        names_tasks: Whether the tasks are its own, that it has found, and no other callback's.
    """
    if path is None or not history:
        return
    if names_tasks:
        history = [{**each, "name": f"task {each['task']}, as it was found"} for each in history]
    try:
        write_whole(path, json.dumps(plain_json(list(history)), indent=1))
    except OSError as error:
        rank_zero_warn(
            f"RecallCallback: {path} could not be written ({error.strerror or error}); the merges "
            "are in the callback's history"
        )


def records_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw a task's coefficients, block by block over its merges."""
    from recall_lightning.metrics.figures import coefficients_figure

    names = list(dict.fromkeys(name for record in records for name in record["coefficient"]))
    # what was frozen meanwhile was not merged
    values = [[record["coefficient"].get(name, 0.0) for record in records] for name in names]
    steps = [record["step"] for record in records]
    return coefficients_figure(torch.tensor(values), names, steps, "merge coefficient")


def front_figure(record: Mapping[str, Any], name: str) -> "Figure":
    """Draw the front of a task's last merge, with what was merged marked.

    Args:
        record: The merge's entry of ``history``.
        name: The task's.
    """
    from recall_lightning.metrics import figures

    far = record.get("divergence", {})
    chosen = {**{n: record[n] for n in ("keep", "plasticity")}, "divergence": far.get("merged")}
    return figures.front_figure(record["front"], chosen, far.get("live"), f"merges after {name}")


def front_rows(record: Mapping[str, Any]) -> list[list[Any]]:
    """Return the merges that were tried, and the one that was made, as rows of a table.

    The columns are those of :data:`FRONT_COLUMNS`. None is what was not measured, as of a merge
    that was made again.
    """
    merged = {what: record.get(what) for what in ("keep", "plasticity")}
    merged |= {what: record.get(what, {}).get("merged") for what in ("loss", "divergence")}
    rows = [*((point, False) for point in record["front"]), (merged, True)]
    return [[*(point.get(n) for n in FRONT_COLUMNS[:-1]), made] for point, made in rows]
