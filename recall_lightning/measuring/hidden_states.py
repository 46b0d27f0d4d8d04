"""Hidden states of a model's blocks on given samples, measured without a trace."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from recall_lightning.measuring.batches import batch_size, detached
from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.weights.naming import named_submodules


def hidden_states(
    module: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Any],
    view: ModelView | ProbeForward | None = None,
) -> dict[str, Tensor]:
    """Run a model over batches and pool what its blocks put out, one vector a sample.

    Tokens are averaged where the view's mask, or the padding mask that a torch transformer layer
    was called with, has no padding; images by global average; several rows a sample (frames, answer
    choices) are averaged. Complex states are their real and imaginary parts, side by side. The
    module's mode, gradients, metrics and every random state are as before.

    Source: RECALL (arXiv 2510.20479), hidden representations.

    Args:
        module: The model.
        blocks: The blocks to measure; one that is gone from the model is left out.
        batches: Batches on the model's device.
        view: How the module is run, and what is padding; by default found, see
            :func:`~recall_lightning.measuring.view.view_of`. Each block must compute at least once.

    Returns:
        Block name to states, (samples, hidden) float32 on the model's device, samples in the order
        of the batches.

    Raises:
        ValueError: If a block computes nothing, or its output does not fit the batch.

    Example:
        >>> from recall_lightning.measuring.blocks import find_blocks
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> states = hidden_states(mlp, find_blocks(mlp), [torch.ones(5, 4)])
        >>> {name: tuple(s.shape) for name, s in states.items()}
        {'0': (5, 8), '2': (5, 2)}
    """
    names = named_submodules(module).keys()
    blocks = [block for block in blocks if {block.name, block.output} <= names]
    states: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    view = view_of(module, view)
    with undisturbed(module), _pooled_outputs(module, blocks, view) as probe:
        for batch in batches:
            probe.start(batch)
            view.forward(module, detached(batch))  # a forward may write into it
            for name, state in probe.finish().items():
                states[name].append(state)
    return {name: torch.cat(parts) for name, parts in states.items()}


@contextmanager
def _pooled_outputs(
    module: nn.Module, blocks: Sequence[Block], view: ModelView
) -> Iterator["_Probe"]:
    modules = named_submodules(module)
    probe = _Probe(blocks, view)
    handles = [
        modules[block.output].register_forward_hook(
            probe.hook(block.name, modules[block.name]), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


class _Probe:
    """Collects one pooled output a block while one batch is computed."""

    def __init__(self, blocks: Sequence[Block], view: ModelView) -> None:
        self._names = [block.name for block in blocks]
        self._view = view
        self._batch: Any = None
        self._samples = 0
        self._pooled: dict[str, Tensor] = {}

    def start(self, batch: Any) -> None:
        self._batch, self._samples, self._pooled = batch, batch_size(batch), {}

    def finish(self) -> dict[str, Tensor]:
        silent = [name for name in self._names if name not in self._pooled]
        if silent:
            raise ValueError(
                f"the block(s) {', '.join(silent[:3])} computed nothing when the model ran: pass a "
                "view that runs them, or the blocks to take as blocks=[…]"
            )
        return self._pooled

    def hook(self, name: str, block: nn.Module) -> Callable[..., None]:
        def pool(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            states = first_tensor(output)
            if states is None:
                raise ValueError(
                    f"the block {name} must put out a tensor, not {type(output).__name__}"
                )
            mask = _padding_free(kwargs)
            if mask is None:
                mask = self._view.mask(self._batch, name)
            samples = self._samples
            pooled = _pool(states, mask, block, samples)
            if len(pooled) % samples:
                raise ValueError(
                    f"the block {name} put out {len(pooled)} rows for a batch of {samples}: "
                    "leave it out of blocks=[…], or pass a view whose rows are samples"
                )
            # several rows a sample, such as frames or answer choices, one after the other
            self._pooled[name] = pooled.unflatten(0, (samples, -1)).mean(dim=1)

        return pool


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor in what a block puts out; of padded sequences, nested ones.

    >>> first_tensor(({"hidden": torch.ones(2)}, None))
    tensor([1., 1.])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, PackedSequence):  # the path of padded batches below does the rest
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        return torch.nested.as_nested_tensor(
            [sample[:length] for sample, length in zip(padded, lengths.tolist(), strict=True)]
        )
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, (tuple, list, Mapping)):
        return next((found for v in values if (found := first_tensor(v)) is not None), None)
    return None


def _padding_free(kwargs: Mapping[str, Any]) -> Tensor | None:
    """Read the mask that torch's transformer layers are called with: True or −inf is padding."""
    for name in ("tgt_key_padding_mask", "src_key_padding_mask"):
        mask = kwargs.get(name)
        if isinstance(mask, Tensor):
            return ~mask if mask.dtype is torch.bool else mask == 0
    return None


def _pool(states: Tensor, mask: Tensor | None, block: nn.Module, samples: int) -> Tensor:
    """Average everything but rows and hidden units away: (rows, hidden) float32."""
    if states.is_nested:  # padded batches on torch's fast path: one (tokens, hidden) a sample
        return torch.stack([sample.float().mean(dim=0) for sample in states.unbind()])
    if states.is_complex():
        parts = [_pool(part, mask, block, samples) for part in (states.real, states.imag)]
        return torch.cat(parts, dim=1)
    states = states.float()
    if states.dim() <= 2:
        return states.reshape(len(states), -1)
    kinds = {type(child) for child in block.modules()}
    if states.dim() > 3:
        channels_first = any(issubclass(kind, _CONVOLUTIONS) for kind in kinds)
        return (
            states.flatten(2).mean(dim=2) if channels_first else states.flatten(1, -2).mean(dim=1)
        )
    if nn.Conv1d in kinds and nn.Linear not in kinds:
        return states.mean(dim=2)
    if _sequence_first(block) and not (len(states) == samples != states.shape[1]):
        states = states.transpose(0, 1)
    if mask is None or mask.shape != states.shape[:2]:
        return states.mean(dim=1)
    weights = mask.to(states.dtype).unsqueeze(-1)
    # where, not a product: what stands on padding may be NaN
    summed = torch.where(weights > 0, states, 0).sum(dim=1)
    return summed / weights.sum(dim=1).clamp(min=1)


_CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def _sequence_first(layer: nn.Module) -> bool:
    return any(getattr(child, "batch_first", True) is False for child in layer.modules())
