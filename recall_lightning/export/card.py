"""The model card of an exported model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recall_lightning.methods.table import METHODS
from recall_lightning.metrics.record import FORGETTING_VARIANT, TaskRecord
from recall_lightning.recall.migration import rename_states


@dataclass(frozen=True)
class Training:
    """What a checkpoint tells of how its model was trained.

    Attributes:
        base: The model that training started from; None if from random weights.
        tasks: The stream's tasks, in order.
        method: The method's name on the command line.
        settings: Its arguments that are not their defaults, as far as the checkpoint has them.
        steps: Optimizer steps.
        record: The task matrix; None if it was not measured.
        history: A dict a merge.
        in_midst: Where it was within a task, if that had not ended, and so was not merged at its
            end.
    """

    base: str | None
    tasks: list[str]
    method: str
    settings: Mapping[str, Any]
    steps: int
    record: TaskRecord | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    in_midst: str | None = None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> Training:
        """Gather it from a checkpoint."""
        about, base = checkpoint["causal_lm"], checkpoint["causal_lm"]["model"]
        saved = dict(checkpoint.get("callbacks", {}))
        rename_states(saved)
        states = {key.partition("{")[0]: state for key, state in saved.items()}
        of_methods = {m.callback.__name__ for m in METHODS.values() if m.callback is not None}
        used = next((key for key in states if key in of_methods), None)
        own = {} if used is None else states[used]
        plain = "joint training or replay" if about["reads_old_data"] else "finetune"
        record = None
        if measured := states.get("ForgettingMonitor", {}).get("record"):
            record = TaskRecord.of_state(measured)
        return cls(
            base if isinstance(base, str) else None,
            about["tasks"],
            plain if used is None else _method(used, own.get("settings", {})),
            own.get("settings", {}),
            checkpoint["global_step"],
            record,
            own.get("history", []),
            _in_midst(states.values(), about["tasks"]),
        )


def _in_midst(states: Iterable[Any], tasks: Sequence[str]) -> str | None:
    """Say where the callbacks were within a task that had not ended."""
    own = next((each for each in states if isinstance(each, dict) and "task_ended" in each), None)
    if own is None or own["task"] is None or own["task_ended"]:
        return None
    name, done, steps = _name(tasks, own["task"]), own["step_in_task"], own.get("task_steps")
    return f"in the midst of {name}, after {done}{f' of {steps}' if steps else ''} steps"


def _name(tasks: Sequence[str], task: int) -> str:
    return tasks[task] if task < len(tasks) else f"task {task}"


def _method(callback: str, settings: Mapping[str, Any]) -> str:
    """Name the method with such a callback; of several the one whose defaults were used."""
    methods = [m for m in METHODS.values() if m.callback and m.callback.__name__ == callback]
    fitting = [m for m in methods if all(settings.get(n) == v for n, v in m.defaults.items())]
    return max(fitting, key=lambda method: len(method.defaults)).name


def model_card(name: str, training: Training, adapter: bool) -> str:
    """Write a model card.

    Args:
        name: What the model is called.
        training: How it came about.
        adapter: Whether it is an adapter, for PEFT.
    """
    on_hub = training.base is not None and not Path(training.base).exists()
    about = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": training.base} if on_hub else {}),
        "tags": ["continual-learning", training.method.replace(" ", "-")],
    }
    stream = " → ".join(training.tasks) or "unnamed tasks"
    what = "A LoRA adapter" if adapter else "A language model"
    lines = ["---", yaml.safe_dump(about, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    lines += [f"{what}, trained with recall_lightning on one task after the other: {stream}.", ""]
    lines += [f"- base: {f'`{training.base}`' if training.base else 'random weights'}"]
    lines += [f"- method: `{training.method}`", f"- optimizer steps: {training.steps}"]
    if training.in_midst is not None:
        lines += [f"- not finished: the checkpoint was written {training.in_midst}"]
    lines += [""]
    if training.settings:
        lines += ["```yaml", yaml.safe_dump(dict(training.settings)).strip(), "```", ""]
    if training.record is not None and training.record.matrix:
        lines += _matrix(training.record)
    if training.history:
        lines += _coefficients(training.history, training.tasks)
    return "\n".join(lines)


def _matrix(record: TaskRecord) -> list[str]:
    better = "higher" if record.higher_is_better else "lower"
    rows = [
        [name, *(f"{score:.4f}" for score in scores)]
        for name, scores in record.rows("before training").items()
    ]
    metrics = [[name.replace("_", " "), f"{value:.4f}"] for name, value in record.summary().items()]
    return [
        "## Every task after every task",
        "",
        f"`{record.score_name}`, {better} is better.",
        "",
        *_table(["", *record.task_names, *record.probe_names], rows),
        "",
        *_table(["metric", "value"], metrics),
        "",
        f"Forgetting is measured from the best score {FORGETTING_VARIANT.replace('_', ' ')}.",
        "",
    ]


def _coefficients(history: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    last = {merge["task"]: merge for merge in history}  # a later merge takes a task's place
    blocks = list(dict.fromkeys(block for merge in last.values() for block in merge["coefficient"]))
    names = [_name(tasks, task) for task in last]
    rows = []
    for block in blocks:
        given = [merge["coefficient"].get(block) for merge in last.values()]
        rows.append([f"`{block}`", *("–" if value is None else f"{value:.3f}" for value in given)])
    return [
        "## Merge coefficients",
        "",
        f"What the snapshot weighed in the last merge of each task, block by block ({len(history)} "
        "merges in all).",
        "",
        *_table(["block", *names], rows),
        "",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = "|---" * len(head) + "|"
    return ["| " + " | ".join(head) + " |", ruler, *("| " + " | ".join(row) + " |" for row in rows)]
