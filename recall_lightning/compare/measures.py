"""What a run costs besides its wall time: seconds in hooks, bytes of state, and where it began."""

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from recall_lightning.data import TaskStream


class HookProfiler(Profiler):
    """Sum the seconds that the Trainer spends in each callback's hooks.

    What else a machine does makes whole runs longer or shorter by more than most callbacks take;
    the time inside the hooks stays comparable. Work that a hook leaves queued on a GPU is not seen.

    Example:
        >>> profiler = HookProfiler()
        >>> with profiler.profile("[Callback]Mine.on_fit_start"):
        ...     time.sleep(0.001)
        >>> profiler.seconds_in("Mine") > 0, profiler.seconds_in("Other")
        (True, 0.0)
    """

    def __init__(self) -> None:
        super().__init__()
        self._seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        """Start the clock of an action."""
        if action_name.startswith("[Callback]"):
            self._started[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop it, and add to what the action has taken."""
        if action_name in self._started:
            taken = time.perf_counter() - self._started.pop(action_name)
            self._seconds[action_name] = self._seconds.get(action_name, 0.0) + taken

    def seconds_in(self, state_key: str) -> float:
        """Return the seconds in all hooks of the callback with this ``state_key``."""
        start = f"[Callback]{state_key}."
        own = (each for name, each in self._seconds.items() if name.startswith(start))
        return sum(own, start=0.0)


def method_callback(trainer: Trainer, kind: type | None) -> Callback | None:
    """Return the Trainer's callback of exactly this class; None if there is none."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if type(each) is kind), None)


def tensor_bytes(state: Any) -> int:
    """Count the bytes of all tensors in nested mappings and sequences, shared ones once.

    Example:
        >>> shared = torch.zeros(4)
        >>> tensor_bytes({"a": [shared, shared], "b": {"c": torch.zeros(2, dtype=torch.int8)}})
        18
    """
    storages: dict[tuple[int, int], int] = {}
    pending = [state]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            storages[value.data_ptr(), value.nbytes] = value.nbytes
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list | tuple | set):
            pending.extend(value)
    return sum(storages.values())


def training_bytes(trainer: Trainer, model: LightningModule) -> int:
    """Count the bytes of parameters, of their gradients and of the optimizers' state."""
    parameters = list(model.parameters())
    gradients = sum(each.nbytes for each in parameters if each.requires_grad)
    states = [optimizer.state for optimizer in trainer.optimizers]
    return tensor_bytes(parameters) + gradients + sum(tensor_bytes(state) for state in states)


def extra_bytes(trainer: Trainer, kind: type | None, needs_old_data: bool) -> int | None:
    """Count what a method keeps besides the training: its callback's state, and its stored samples.

    Args:
        trainer: After the fit.
        kind: The class of the method's callback, if it has one.
        needs_old_data: Whether it reads data of earlier tasks.

    Returns:
        Bytes; None for a method that reads all old data, or stores what cannot be counted.
    """
    callback = method_callback(trainer, kind)
    state = 0 if callback is None else tensor_bytes(callback.state_dict())
    if not needs_old_data:
        return state
    stream = trainer.datamodule  # type: ignore[attr-defined]
    stored = (
        stream.stored_samples(len(stream.order) - 1) if isinstance(stream, TaskStream) else None
    )
    with suppress(TypeError):  # samples that have no bytes to count
        return None if stored is None else state + stored.nbytes
    return None


def weights_digest(model: torch.nn.Module) -> str:
    """Hash a model's parameters and buffers: equal for equal starts.

    Example:
        >>> a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> weights_digest(a) == weights_digest(b)
        False
        >>> _ = b.load_state_dict(a.state_dict())
        >>> weights_digest(a) == weights_digest(b)
        True
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
