"""Whether what a checkpoint holds for callbacks is whole."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from recall_lightning.callbacks._trainer.position import PositionState
from recall_lightning.callbacks._trainer.resuming import restore_random_state
from recall_lightning.checks import FormError, check_form
from recall_lightning.measuring.isolation import isolated_rng


class RandomStates(TypedDict):
    """The states of a process's random generators."""

    torch: Tensor
    python: list[Any]
    numpy: dict[str, Any]
    cuda: NotRequired[Tensor]


class ExactResumeState(TypedDict):
    """What a checkpoint holds that an exact resume needs."""

    random_states: list[RandomStates]
    gradients: dict[str, Tensor]
    validation_due: bool
    in_epoch: bool


class _Added(TypedDict):
    """What is added to a checkpoint beside the callbacks' states; older ones hold less."""

    recall_lightning: NotRequired[ExactResumeState]
    recall_lightning_position: NotRequired[PositionState]


@contextmanager
def damage_is_said(whose: str) -> Iterator[None]:
    """Raise a ValueError about a checkpoint's state as a MisconfigurationException.

    Args:
        whose: What the state is of.

    Example:
        >>> with damage_is_said("RecallCallback"):
        ...     raise ValueError("snapshots.tasks is missing")
        Traceback (most recent call last):
        lightning...MisconfigurationException: RecallCallback: the checkpoint's state is damaged...
    """
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(
            f"{whose}: the checkpoint's state is damaged, {error}: resume from another checkpoint"
        ) from error


def check_state(callback: Any, state: Any) -> None:
    """Check that a callback's state has the callback's ``state_form``.

    Raises:
        MisconfigurationException: Naming the callback and the entry.
    """
    with damage_is_said(type(callback).__name__):
        check_form(state, callback.state_form)
        wanted = state.get("tensors")
        if wanted is not None and count_tensors(state) != wanted:
            raise FormError(f"it holds {count_tensors(state)} tensors, and held {wanted}")


def count_tensors(state: Any) -> int:
    """Return how many tensors are in nested dicts and lists.

    Example:
        >>> import torch
        >>> count_tensors({"anchor": {"w": torch.ones(1)}, "batches": [torch.ones(2), None]})
        2
    """
    if isinstance(state, Mapping):
        return sum(map(count_tensors, state.values()))
    if isinstance(state, list):
        return sum(map(count_tensors, state))
    return int(isinstance(state, Tensor))


def check_checkpoint(checkpoint: Mapping[str, Any], module: nn.Module) -> None:
    """Check what a checkpoint holds beside the callbacks' states.

    Raises:
        MisconfigurationException: Naming the entry.
    """
    with damage_is_said("recall_lightning"):
        check_form(dict(checkpoint), _Added)
        added = checkpoint.get("recall_lightning", {})
        weights = dict(module.named_parameters())
        check_tensors(added.get("gradients", {}), weights, "gradients")
        for process, state in enumerate(added.get("random_states", [])):
            _check_random_state(state, f"random_states.{process}")


def _check_random_state(state: RandomStates, where: str) -> None:
    with isolated_rng():
        try:
            restore_random_state(state, torch.device("cpu"))
        except Exception as error:  # each generator has its own
            raise FormError(f"{where} restores no generator ({error})") from error


def check_tensors(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Check that tensors are of the weights whose names they have.

    Raises:
        ValueError: Naming the first that has no weight, or another shape.
    """
    for name, tensor in tensors.items():
        if name not in weights:
            raise FormError(f"{where}.{name} is of no weight of the model")
        if tensor.shape != weights[name].shape:
            shapes = f"{tuple(tensor.shape)} for {tuple(weights[name].shape)}"
            raise FormError(f"{where}.{name} has another shape than the weight, {shapes}")


def say_missing_state(callback: Callback, checkpoint: Mapping[str, Any]) -> None:
    """Say so where a run resumes with a callback of which the checkpoint holds no state."""
    states = checkpoint.get("callbacks", {})
    if callback.state_key not in states and checkpoint.get("global_step", 0):
        rank_zero_warn(
            f"the checkpoint holds no state of {callback.state_key}: it begins here, and knows "
            "nothing of what was trained before"
        )
