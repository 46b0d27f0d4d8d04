"""Running a model without a trace: what it holds and every random state are put back."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from recall_lightning.measuring.guarded_parameters import guarded_parameters
from recall_lightning.measuring.set_aside import set_aside

_measured = 0  # how many blocks are open; not by thread, as a backward may run in others


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate a module inside the ``with`` block and leave no trace of it.

    Inside: evaluation mode, no gradients, no compiled code (it would not call hooks). After:
    torch's, numpy's and Python's random states, each submodule's mode, buffers and plain attributes
    (see :func:`~recall_lightning.measuring.set_aside.set_aside`) are what they were, and so is
    which parameters are trainable.

    Modes are set and undone by the modules' own ``train`` methods, as some do more there than set a
    flag, such as adding an adapter to its weight. What these do to weights of their own, and what
    an embedding with a ``max_norm`` does to its, is done to copies. A parameter that is written in
    another way is found out by a sample of its values when a module is measured first.

    Warns:
        UserWarning: If a parameter has been written. From then on that is done to a copy, too.

    Example:
        >>> dropout = nn.Dropout()
        >>> with undisturbed(dropout):
        ...     _ = torch.rand(3)
        ...     print(dropout.training)
        False
        >>> dropout.training
        True
    """
    with ExitStack() as stack:
        stack.enter_context(_counted())
        stack.enter_context(torch.no_grad())
        stack.enter_context(isolated_rng(cuda_devices(module)))
        if "torch._dynamo" in sys.modules:  # whatever was compiled would not call the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(set_aside(module))
        stack.enter_context(guarded_parameters(module))
        stack.enter_context(_evaluated(module))
        yield


def is_measured() -> bool:
    """Tell whether a pass belongs to no training: some module is run undisturbed.

    A hook that listens to training leaves it out.

    Example:
        >>> with undisturbed(nn.Linear(2, 2)):
        ...     inside = is_measured()
        >>> inside, is_measured()
        (True, False)
    """
    return _measured > 0


@contextmanager
def _counted() -> Iterator[None]:
    global _measured
    _measured += 1
    try:
        yield
    finally:
        _measured -= 1


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Call ``eval`` of a module, and after the ``with`` block ``train`` of those it has changed."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes:  # outer ones first: theirs reaches the inner ones
            if child.training != mode:
                child.train(mode)
        for child, mode in modes:
            child.training = mode


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
