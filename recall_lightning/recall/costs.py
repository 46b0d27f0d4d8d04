"""What RecallCallback will hold in memory, known before a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from recall_lightning.merging.structure import Structure
from recall_lightning.recall.merge_interval import MergeInterval
from recall_lightning.recall.parts import Parts
from recall_lightning.weights.naming import named_weights

_MIB = 2**20


@dataclass(frozen=True)
class ExpectedMemory:
    """Bytes that a callback will hold in a process, by what they are for.

    Attributes:
        training: While a task trains that is not the first; in the first there is less.
        at_task_end: What comes on top for as long as a task's end takes, beside what running the
            model forward and backward takes.

    Example:
        >>> print(ExpectedMemory({"snapshots": 3 * 2**20}, {"moments of the task": 2**19}))
        while a task trains           MiB
        snapshots                   3.000
        together                    3.000
        <BLANKLINE>
        more while a task ends        MiB
        moments of the task         0.500
        together                    0.500
    """

    training: Mapping[str, int]
    at_task_end: Mapping[str, int]

    def __str__(self) -> str:
        parts = {"while a task trains": self.training, "more while a task ends": self.at_task_end}
        tables = []
        for title, sizes in parts.items():
            together = {**sizes, "together": sum(sizes.values())}
            rows = [f"{what:<24}{size / _MIB:>9.3f}" for what, size in together.items()]
            tables.append("\n".join([f"{title:<24}{'MiB':>9}", *rows]))
        return "\n\n".join(tables)


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a copy of the weights that are trained.

    >>> weight_bytes(nn.Linear(3, 2))
    32
    """
    return sum(weight.nbytes for weight in named_weights(module).values())


def expected_memory(
    module: nn.Module,
    batch: Any,
    structure: Structure,
    parts: Parts,
) -> ExpectedMemory:
    """Tell what a callback's parts will hold.

    Args:
        module: The model.
        batch: A training batch.
        structure: The model's blocks and maps.
        parts: The parts.
    """
    kept, drift, before_end = parts.kept, parts.drift, MergeInterval(parts.every).comes_before_end
    number = 1 if kept.most == "all" else kept.most
    held = parts.statistics.expected_bytes(structure, module, batch, number)
    copied = weight_bytes(module)
    held = {"snapshots": number * copied * (kept.storage.to == "checkpoint"), **held}
    if not ("curvature" in parts.rule.needs and before_end):
        held.pop("eigenvectors", None)
    if drift is not None:
        held |= drift.expected_bytes(copied, batch)
    at_end = {"moments of the task": held["moments"]} if "moments" in held else {}
    if parts.plasticity is not None:  # found by tries, from a copy
        at_end["live weights"] = copied
    return ExpectedMemory(held, at_end)
