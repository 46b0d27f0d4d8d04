"""How to run a model that knows nothing of us on a batch of its own training data."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from recall_lightning.measuring.batches import entries_of
from recall_lightning.measuring.blocks import has_parameters
from recall_lightning.weights.naming import canonical_name

ProbeForward = Callable[[nn.Module, Any], Any]
"""Runs a module on a batch and returns what it puts out."""


def default_forward(module: nn.Module, batch: Any) -> Any:
    """Run ``module`` on the inputs found in ``batch`` and return its output.

    The module called is ``module`` itself if its class defines ``forward``, otherwise the one child
    that has parameters. It gets

    - of a mapping or dataclass: the entries that its ``forward`` has a parameter for, by name, and
      masks and positions if it takes ``**kwargs``;
    - of a named tuple the same, if it has all that ``forward`` requires;
    - of any other tuple or list: as many leading entries as its ``forward`` requires, at least one
      (a leading mapping is used as above);
    - a tensor as it is; and the whole batch if the one required parameter is called ``batch`` or
      annotated with the batch's class, or if the batch is an object of another kind (a graph).

    Args:
        module: The LightningModule, or any module.
        batch: A batch as ``training_step`` gets it.

    Raises:
        ValueError: If the child or its inputs cannot be worked out; it says what is missing.

    Example:
        >>> default_forward(nn.Linear(2, 1), (Tensor([[1.0, 2.0]]), Tensor([0.0]))).shape
        torch.Size([1, 1])
    """
    target = called_module(module)
    args, kwargs = arguments_of(target, batch)
    return target(*args, **kwargs)


def called_module(module: nn.Module) -> nn.Module:
    """Return what :func:`default_forward` calls.

    Raises:
        ValueError: If that cannot be worked out.
    """
    while not _defines_forward(module):
        # a frozen backbone counts, too: the head is nothing without it
        needed = [child for child in module.children() if has_parameters(child)]
        if len(needed) != 1:
            names = ", ".join(canonical_name(name) for name, _ in module.named_children())
            raise ValueError(
                f"{type(module).__name__} defines no forward, and how its children ({names}) work "
                "together cannot be known: define one, or give view="
            )
        module = needed[0]
    return module


def _defines_forward(module: nn.Module) -> bool:
    definition = inspect.unwrap(type(uncompiled(module)).forward)
    return definition.__module__ not in ("torch.nn.modules.module", _LIGHTNING_MODULE)


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` has wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Tell whether ``module.compile()`` was called, which compiles hooks along with it.

    >>> is_compiled_in_place(nn.Linear(2, 1))
    False
    """
    return getattr(module, "_compiled_call_impl", None) is not None


_PASSED_ON = ("attention_mask", "position_ids", "token_type_ids", "decoder_attention_mask")
"""Inputs that a ``forward(input_ids, **kwargs)`` hands to its transformer unseen."""

_LIGHTNING_MODULE = "lightning.pytorch.core.module"


def arguments_of(target: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what :func:`default_forward` gives the module that it calls, by place and by name.

    Raises:
        ValueError: If that cannot be worked out.
    """
    original = uncompiled(target)
    parameters = inspect.signature(original.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in parameters if p.default is p.empty and p in named]
    positional_only = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    entries = entries_of(batch)
    wanted = [p for p in parameters if p.default is p.empty and p.kind in _POSITIONAL]
    if required == ["batch"] or isinstance(batch, Tensor) or _is_for(batch, wanted):
        return (batch,), {}
    if isinstance(batch, tuple) and not set(required) <= set(entries or ()):
        entries = None  # by position
    if entries is not None:
        return (), _by_name(
            type(original).__name__,
            entries,
            [p.name for p in named],
            required,
            {p.kind for p in parameters},
        )
    if isinstance(batch, (tuple, list)) and batch:
        if isinstance(batch[0], Mapping) or is_dataclass(batch[0]):
            return arguments_of(target, batch[0])
        count = max(1, len(required) + len(positional_only))
        if count <= len(batch):
            return tuple(batch[:count]), {}
        raise ValueError(
            f"{type(original).__name__}.forward requires {', '.join(required)}, and the batch is a "
            f"{type(batch).__name__} of {len(batch)}"
        )
    if not isinstance(batch, (tuple, list, *_NO_OBJECTS)) and len(wanted) == 1:
        return (batch,), {}
    raise ValueError(
        f"a batch of type {type(batch).__name__} has no inputs that can be found: give view="
    )


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NO_OBJECTS = (str, bytes, int, float, type(None))


def _is_for(batch: Any, wanted: list[inspect.Parameter]) -> bool:
    """Tell whether the one parameter that is wanted says that it takes such batches."""
    own = type(batch)
    names = (own, own.__name__)  # annotations may be texts
    return len(wanted) == 1 and own not in (tuple, list, dict) and wanted[0].annotation in names


def _by_name(
    owner: str, batch: Mapping[str, Any], names: list[str], required: list[str], kinds: set[Any]
) -> dict[str, Any]:
    kwargs = {name: batch[name] for name in names if name in batch}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        if not kwargs and not required:
            return dict(batch)
        kwargs |= {name: batch[name] for name in _PASSED_ON if name in batch}
    missing = [name for name in required if name not in kwargs]
    if missing or not kwargs:
        raise ValueError(
            f"{owner}.forward takes {', '.join(missing or names)}, and the batch has the entries "
            f"{', '.join(map(str, batch))}: rename them, or give view="
        )
    return kwargs
