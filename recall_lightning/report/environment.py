"""With what a run, or a report, was made."""

from __future__ import annotations

import json
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from recall_lightning.__about__ import __version__
from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    import torch

_PACKAGES = ("lightning", "torch")


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Return versions, the date and the device, by what they are of.

    Args:
        device: What was computed on; by default what torch would find.

    Example:
        >>> list(environment())
        ['date', 'device', 'python', 'recall-lightning', 'lightning', 'torch', 'system']
    """
    return {
        "date": datetime.now().astimezone().isoformat(" ", "seconds"),
        "device": _device_name(device),
        "python": platform.python_version(),
        "recall-lightning": __version__,
        **{package: _version(package) for package in _PACKAGES},
        "system": platform.platform(),
    }


def write_environment(folder: Path, device: torch.device) -> None:
    """Write ``environment.json`` into a run's folder: with what it was trained.

    Raises:
        OSError: If it cannot be written.
    """
    write_whole(folder / "environment.json", json.dumps(environment(device), indent=1))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device | None) -> str:
    import torch

    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
