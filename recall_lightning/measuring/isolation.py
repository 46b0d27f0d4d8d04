"""Running a model without a trace: its modes, metrics and every random state are put back."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate a module inside the ``with`` block and leave no trace of it.

    Inside: evaluation mode, no gradients, no compiled code (it would not call hooks). After: each
    submodule's mode, torch's, numpy's and Python's random states and the states of all torchmetrics
    are what they were.

    Example:
        >>> dropout = nn.Dropout()
        >>> with undisturbed(dropout):
        ...     _ = torch.rand(3)
        ...     print(dropout.training)
        False
        >>> dropout.training
        True
    """
    modes = [(child, child.training) for child in module.modules()]
    metrics = [(child, _metric_state(child)) for child in module.modules() if _is_metric(child)]
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(isolated_rng(cuda_devices(module)))
            if "torch._dynamo" in sys.modules:  # whatever was compiled would not call the hooks
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            module.eval()
            yield
    finally:
        for child, mode in modes:
            child.training = mode
        for metric, state in metrics:
            metric.__dict__.update(state)


@contextmanager
def isolated_rng(devices: Sequence[int] = ()) -> Iterator[None]:
    """Put torch's (CPU and the CUDA ``devices``'), numpy's and Python's random states back after.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated_rng():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def cuda_devices(module: nn.Module) -> list[int]:
    """Return the indices of the CUDA devices that a module's parameters are on."""
    return sorted({p.device.index or 0 for p in module.parameters() if p.is_cuda})


def _is_metric(module: nn.Module) -> bool:
    torchmetrics = sys.modules.get("torchmetrics")  # who has a metric has imported it
    return torchmetrics is not None and isinstance(module, torchmetrics.Metric)


def _metric_state(metric: Any) -> dict[str, Any]:
    """Copy what an update changes: states may be updated in place."""
    kept = {
        name: state.clone() if isinstance(state, Tensor) else list(state)
        for name, state in metric.metric_state.items()
    }
    return kept | {"_update_count": metric._update_count, "_computed": metric._computed}
