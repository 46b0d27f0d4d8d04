"""What a merge was, as loggers take it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BY_BLOCK = ("similarity", "coefficient", "drift", "condition", "discarded_energy")
_SECONDS = ("probe_seconds", "merge_seconds")


def record_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of an entry of ``RecallCallback.history``.

    Example:
        >>> record = {"coefficient": {"net.0": 0.4}, "probe_seconds": 0.1, "merge_seconds": 0.2}
        >>> list(record_scalars(record))
        ['recall/coefficient/net.0', 'recall/probe_seconds', 'recall/merge_seconds']
    """
    groups = [("recall", name, record.get(name, {})) for name in _BY_BLOCK]
    for old in record.get("earlier", []):
        folder = f"recall/snapshot_{old['task']}"
        groups += [(folder, name, old[name]) for name in ("similarity", "coefficient")]
    scalars = {
        f"{folder}/{name}/{block}": value
        for folder, name, values in groups
        for block, value in values.items()
    }
    return scalars | {f"recall/{what}": record[what] for what in _SECONDS}


def records_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw a task's coefficients, block by block over its merges."""
    from recall_lightning.figures import coefficients_figure

    names = list(records[0]["coefficient"])
    values = torch.tensor([[record["coefficient"][name] for record in records] for name in names])
    steps = [record["step"] for record in records]
    return coefficients_figure(values, names, steps, "merge coefficient")
