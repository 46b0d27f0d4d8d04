"""What a forward may write besides weights: set aside while a model is measured, then put back."""

from __future__ import annotations

import random
import sys
import warnings
from argparse import Namespace
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from recall_lightning.weights.sharding import is_sharded

_OF_MODULES = frozenset(vars(nn.Module()))
_MANY = 1000  # entries: so long a container is put back as a whole, and not what is in it
_LARGE = 2**20  # elements: so large a tensor of integers is a quantised weight, which none writes
# whose objects are no state of a model; loggers' threads go on meanwhile
_FRAMEWORKS = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "numpy", "datasets"}
_FRAMEWORKS |= {"wandb", "mlflow", "neptune", "comet_ml", "tensorboard", "tensorboardX", "clearml"}
_PLAIN = (SimpleNamespace, Namespace, UserDict, UserList)


@contextmanager
def set_aside(module: nn.Module) -> Iterator[None]:
    """Let modules write into copies of what they hold inside the ``with`` block.

    After it every submodule has its own buffers again, made, gone or replaced ones too, and its
    plain attributes: numbers, tensors, arrays, random generators, lists, dictionaries, sets,
    objects with such attributes, and modules in lists. Nothing is copied back, so a graph that
    waits for its backward is none the wiser. Parameters are not copied.

    Warns:
        UserWarning: If what is not copied, an integer tensor of a million elements, was written.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with set_aside(norm):
        ...     _ = norm(torch.randn(8, 2))
        >>> norm.running_mean.tolist(), int(norm.num_batches_tracked)
        ([0.0, 0.0], 0)
    """
    aside = _SetAside()
    try:
        for name, child in module.named_modules():
            aside.take_module(child, name)
        yield
    finally:
        aside.put_back()


class _SetAside:
    """Exchanges what is held for copies, and knows how to put the originals back."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}  # by identity: the original, what stands in
        self._modules: set[int] = set()
        self._undo: list[Callable[[], None]] = []
        self._empty: list[Any] = []  # tables of hooks and the like: most of what modules have
        self._watched: list[tuple[str, Tensor, int]] = []

    def put_back(self) -> None:
        for container in self._empty:
            if container:
                container.clear()
        for undo in reversed(self._undo):
            undo()
        written = [name for name, tensor, version in self._watched if tensor._version != version]
        if written:
            warnings.warn(
                f"measuring the model wrote into {', '.join(written[:3])}, too large to be copied "
                "first: it is not what it was",
                stacklevel=2,
            )

    def take_module(self, module: nn.Module, name: str) -> None:
        if id(module) in self._modules:
            return
        self._modules.add(id(module))
        if isinstance(module, torch.jit.ScriptModule):  # whose buffers cannot be exchanged
            for buffer in module.buffers(recurse=False):
                self._undo.append(_copying_back(buffer, buffer.clone()))
            return
        fields = vars(module)
        own = [key for key in fields if key not in _OF_MODULES]
        self._undo.append(_restoring_dict(fields))
        # FSDP2 exchanges parameters in a forward, and hooks into the module in the first
        sharded = any(map(is_sharded, module._parameters.values()))
        internal = {"_buffers", "_non_persistent_buffers_set"} if sharded else _OF_MODULES
        for key in internal & fields.keys():
            if type(fields[key]) is not bool and fields[key] is not None:
                if fields[key]:
                    self._undo.append(_restoring(fields[key]))
                else:
                    self._empty.append(fields[key])
        for key in own:
            fields[key] = self._stand_in(fields[key], f"{name}.{key}".lstrip("."))
        buffers: dict[str, Any] = module._buffers
        for key, buffer in buffers.items():
            if buffer is not None:
                buffers[key] = self._stand_in(buffer, f"{name}.{key}".lstrip("."))

    def _stand_in(self, value: Any, name: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, nn.Parameter)):
            return value
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, value)  # a structure may hold itself
            self._seen[id(value)] = (value, self._taken(value, name))
        return self._seen[id(value)][1]

    def _taken(self, value: Any, name: str) -> Any:
        """Return what stands in for a value: a copy, or itself where it is written in place."""
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray):
            return value.copy()
        if isinstance(value, nn.Module):
            for inner, child in value.named_modules():
                self.take_module(child, f"{name}.{inner}".rstrip("."))
        elif isinstance(value, tuple):
            return self._tuple(value, name)
        elif isinstance(value, (dict, list, set, deque)):
            self._container(value, name)
        elif (setter := _random_state(value)) is not None:
            self._undo.append(setter)
        elif _has_plain_fields(type(value)):  # type: ignore[arg-type]
            self._object(value, name)
        return value

    def _tensor(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.grad_fn is not None or is_lazy(tensor):  # a forward computes it anew
            return tensor
        number = tensor.is_floating_point() or tensor.is_complex()
        if not number and tensor.numel() >= _LARGE:
            if not tensor.is_inference():
                self._watched.append((name, tensor, tensor._version))
            return tensor
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    def _tuple(self, value: tuple[Any, ...], name: str) -> tuple[Any, ...]:
        parts = [self._stand_in(part, f"{name}[{i}]") for i, part in enumerate(value[:_MANY])]
        if len(value) > _MANY or all(a is b for a, b in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    def _container(self, value: Any, name: str) -> None:
        self._undo.append(_restoring(value))
        if len(value) > _MANY or isinstance(value, set):
            return
        if isinstance(value, dict):
            for key, part in list(dict.items(value)):
                dict.__setitem__(value, key, self._stand_in(part, f"{name}[{key!r}]"))
        elif isinstance(value, list):
            parts = [self._stand_in(part, f"{name}[{i}]") for i, part in enumerate(list(value))]
            list.__setitem__(value, slice(None), parts)
        else:
            for i, part in enumerate(list(value)):
                value[i] = self._stand_in(part, f"{name}[{i}]")

    def _object(self, value: Any, name: str) -> None:
        fields = getattr(value, "__dict__", None)
        if type(fields) is dict:
            self._container(fields, name)
        for key in _slots(type(value)):  # type: ignore[arg-type]
            if hasattr(value, key):
                own = getattr(value, key)
                self._undo.append(partial(object.__setattr__, value, key, own))
                object.__setattr__(value, key, self._stand_in(own, f"{name}.{key}"))


def _restoring(container: Any) -> Callable[[], None]:
    """Return what gives a container the entries back that it has now."""
    if isinstance(container, dict):
        return _restoring_dict(container)
    return partial(_restore, container, list(container))


def _restore(container: Any, entries: list[Any]) -> None:
    if isinstance(container, list):
        list.__setitem__(container, slice(None), entries)
    else:
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(entries)


def _restoring_dict(container: dict[Any, Any]) -> Callable[[], None]:
    # whatever a class of the user's own makes of setting entries is left out
    kind = OrderedDict if isinstance(container, OrderedDict) else dict
    return partial(_restore_dict, kind, container, dict(kind.items(container)))


def _restore_dict(
    kind: type[dict[Any, Any]], container: dict[Any, Any], entries: dict[Any, Any]
) -> None:
    if list(kind.keys(container)) != list(entries):
        kind.clear(container)
    for key, value in entries.items():
        kind.__setitem__(container, key, value)


def _copying_back(tensor: Tensor, value: Tensor) -> Callable[[], None]:
    def restore() -> None:
        if not torch.equal(tensor, value):
            tensor.data.copy_(value)

    return restore


def _random_state(value: Any) -> Callable[[], None] | None:
    """Return what gives a random generator the state back that it has now; None for others."""
    if isinstance(value, torch.Generator):
        of_torch = value.get_state()
        return lambda: cast(None, value.set_state(of_torch))
    if isinstance(value, random.Random):
        of_python = value.getstate()
        return lambda: value.setstate(of_python)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    if isinstance(value, np.random.Generator):
        of_numpy = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", of_numpy)
    return None


@cache
def _has_plain_fields(kind: type) -> bool:
    """Tell whether objects of a class are someone's own state, and no part of a framework."""
    if issubclass(kind, _PLAIN):
        return True
    roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
    own = kind.__module__.partition(".")[0]
    return own not in sys.stdlib_module_names and not roots & _FRAMEWORKS and kind is not type


@cache
def _slots(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in kind.__mro__:
        slots: str | Iterable[str] = vars(base).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))
