"""The last layer of a classifier: which it is, and what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.input_moments import hooked
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.view import CausalView, ModelView

_Call = tuple[Tensor, Tensor]


def head_of(
    module: nn.Module, maps: Sequence[LinearMap], batch: Any, view: ModelView
) -> LinearMap | None:
    """Return the linear layer whose outputs are the model's logits, or those before a log_softmax.

    Args:
        module: The model, in evaluation mode.
        maps: Its linear maps.
        batch: Which it is run on.
        view: Runs it, and finds its logits.

    Returns:
        None where no layer's are, as they are cut, scaled or chosen from afterwards, and of a
        causal language model, whose last layer is as wide as its vocabulary.

    Example:
        >>> from recall_lightning.measuring.linear_maps import find_linear_maps
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        >>> head_of(model, find_linear_maps(model)[0], torch.ones(1, 2), ModelView()).weight
        '2.weight'
    """
    if isinstance(view, CausalView):
        return None
    layers = [each for each in maps if _is_whole_layer(each)]
    with torch.no_grad(), _heard(module, layers) as calls:
        logits = view.logits(view.forward(module, detached(batch)))
    for layer in reversed(layers):
        if logits is not None and len(calls[layer.name]) == 1:
            outputs = calls[layer.name][0][1]
            if outputs.shape == logits.shape and _are_logits(outputs.to(logits), logits):
                return layer
    return None


def given_to(
    module: nn.Module, head: LinearMap, batches: Sequence[Any], view: ModelView
) -> tuple[Tensor, Tensor]:
    """Return what the last layer is given, and what comes of it, where predictions count.

    Args:
        module: The model, in evaluation mode.
        head: Its last layer.
        batches: On which it is run, at least one.
        view: Runs it, and tells which predictions count.

    Returns:
        (predictions, width) and (predictions, classes), float32.
    """
    rows: list[_Call] = []
    for batch in batches:
        with torch.no_grad(), _heard(module, [head]) as calls:
            view.forward(module, detached(batch))
        inputs, outputs = calls[head.name][-1]
        counts = view.counts(batch, outputs[..., 0])
        rows.append((inputs[counts].float(), outputs[counts].float()))
    return torch.cat([one for one, _ in rows]), torch.cat([other for _, other in rows])


def _are_logits(outputs: Tensor, logits: Tensor) -> bool:
    return any(
        torch.allclose(each, logits, rtol=0, atol=0, equal_nan=True)
        for each in (outputs, outputs.log_softmax(dim=-1))
    )


def _is_whole_layer(layer: LinearMap) -> bool:
    alone = len(layer.modules) == 1 and layer.rows is None
    return layer.kind == "linear" and alone and layer.second_factor is None


@contextmanager
def _heard(module: nn.Module, layers: Sequence[LinearMap]) -> Iterator[Mapping[str, list[_Call]]]:
    """Keep what layers are given and return inside the block, by name.

    Of one whose bias is not trained nothing is heard, as that is no part of the map.
    """
    calls: dict[str, list[_Call]] = {layer.name: [] for layer in layers}

    def listen(child: nn.Module, layer: LinearMap) -> RemovableHandle:
        def hear(own: nn.Module, given: Any, output: Tensor) -> None:
            if (getattr(own, "bias", None) is None) == (layer.bias is None):
                calls[layer.name].append((given[0].detach(), output.detach()))

        return child.register_forward_hook(hear)

    with hooked(module, layers, listen):
        yield calls
