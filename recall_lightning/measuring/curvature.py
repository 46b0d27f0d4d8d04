"""The curvature of a model's predictions in its linear maps, as Kronecker factors."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.batches import detached, entries_of
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.guarded_parameters import no_gradients_left
from recall_lightning.measuring.input_moments import (
    InputSums,
    empty_side,
    hooked,
    input_moments,
    sums_where_shared,
)
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, LowRankMoments, Moments, noise_of
from recall_lightning.measuring.multiplications import multiplications, products_apart
from recall_lightning.measuring.predictions import FoundPredictions, Predictions
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.weights.naming import find_weights

NOT_TOLD = (
    "the batch holds no targets that fit the model's outputs: integer classes for a last axis of "
    "logits, or numbers in the outputs' shape; what the model predicts can be set, as in "
    "predictions='classes'"
)
"""Why nothing is known at outputs of a model whose predictions nothing has told."""


@dataclass(frozen=True)
class KroneckerFactors:
    """What makes up the Fisher information of linear maps, F ≈ E[xxᵀ] ⊗ E[ggᵀ].

    Attributes:
        inputs: Map name to the moments of a map's inputs x.
        outputs: Map name to the moments of the gradients g at a map's outputs, where the model's
            predictions are known.
        unknown: Why there are no moments at outputs, though there are maps that could have them.
        predictions: The kind of prediction that outputs were taken for, where labels were drawn.
        mean: The mean of the curvature's diagonal, in nats a prediction for a squared weight, by
            which :func:`normalised` has divided; None where that was not done.
    """

    inputs: Mapping[str, Moments] = field(default_factory=dict)
    outputs: Mapping[str, Moments] = field(default_factory=dict)
    unknown: str | None = None
    predictions: Predictions | None = None
    mean: float | None = None


def kronecker_factors(
    module: nn.Module,
    maps: Sequence[LinearMap],
    batches: Sequence[Any],
    view: ModelView | ProbeForward | None = None,
    full_width: int = 512,
    rank: int = 32,
    seed: int = 0,
    predictions: FoundPredictions | str | Predictions | Callable[[Tensor], Distribution] = "auto",
) -> KroneckerFactors:
    """Run a model forward and backward over batches and sum up both factors of its curvature.

    Gradients are those of −log p of labels drawn from the model's own predictions, so the curvature
    is that of what the model says, whatever its training loss has come to. Source: K-FAC (Martens
    and Grosse, arXiv 1503.05671), its expand form over tokens and image patches. The model's mode,
    gradients, metrics and every random state are as before. It runs in evaluation mode, where
    Hugging Face models checkpoint no activations: a batch takes the memory of a training step
    without that.

    Args:
        module: The model.
        maps: Those of :func:`~recall_lightning.measuring.linear_maps.find_linear_maps`.
        batches: Batches on the model's device, targets included.
        view: How the module is run, what is padding, and where its logits and targets are; by
            default found, see :func:`~recall_lightning.measuring.view.view_of`.
        full_width: A side of more entries than this, inputs or outputs, has moments of low rank
            plus a diagonal.
        rank: That rank.
        seed: Of the drawn labels.
        predictions: The kind of the model's predictions, ``"auto"``, or what was found before: see
            :class:`~recall_lightning.measuring.predictions.FoundPredictions`.

    Returns:
        Input moments are means over inputs, output moments sums over a sample's tokens or patches
        and means over samples (of a language model: over predicted tokens). Those of a LoRA update
        are of the layer that it is added to: its curvature is the layer's own.

    Raises:
        ValueError: If the predictions are no kind, or of one that the batches contradict.

    Example:
        >>> from recall_lightning.measuring.linear_maps import find_linear_maps
        >>> net = nn.Linear(2, 1, bias=False)
        >>> batch = (torch.ones(8, 2), torch.rand(8, 1))  # real numbers: E[gg] is 1
        >>> factors = kronecker_factors(net, find_linear_maps(net)[0], [batch] * 500)
        >>> factors.inputs["weight"].matrix.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
        >>> round(factors.outputs["weight"].matrix.item(), 1)
        1.0
    """
    factors = [one.second_factor for one in maps if one.second_factor is not None]
    weights = find_weights(module, [one.weight for one in maps] + factors)
    maps = [m for m in maps if {m.weight, m.second_factor or m.weight} <= weights.keys()]
    view, found = view_of(module, view), predictions
    if not isinstance(found, FoundPredictions):
        found = FoundPredictions(found)
    factored = [one for one in maps if is_factored(one)]
    if not factored:
        return KroneckerFactors(input_moments(module, maps, batches, view, full_width, rank))
    outputs = _OutputSums({one: one.outputs(weights) for one in factored}, full_width, rank)

    def sums_of(shares: bool) -> InputSums:
        inputs = InputSums(maps, view, full_width, rank, shares)
        outputs.clear()
        with (
            undisturbed(module),
            # of a backward inside the backward, as reversible layers have it
            no_gradients_left(module),
            inputs.gathered_from(module),
            outputs.gathered_from(module),
            products_apart(),
            torch.enable_grad(),
        ):
            torch.manual_seed(seed)
            for batch in batches:
                inputs.batch = batch
                output = view.forward(module, detached(batch))  # a forward may write into it
                inputs.batch = None  # checkpointed layers compute once more in backward
                outputs.add(sampled_loss(view, found, output, batch))
        return inputs

    inputs = sums_where_shared(module, sums_of)
    return KroneckerFactors(inputs.means(), outputs.means(), outputs.unknown, found.kind)


def sampled_loss(
    view: ModelView, found: FoundPredictions, output: Any, batch: Any
) -> tuple[Tensor, int] | str:
    """Sum −log p of drawn labels over the predictions that count; return how many those are, too.

    Or the reason, where the kind of the predictions is not known, or outputs have no gradient.
    """
    outputs = view.logits(output)
    if outputs is None:
        entries = entries_of(output)
        within = "" if entries is None else f" with {', '.join(map(str, entries))}"
        return (
            f"the model returned {type(output).__name__}{within}, in which no logits are known: "
            "pass a ModelView as view, whose logits(output) finds them"
        )
    if not outputs.requires_grad:
        return "what the model returned has no gradient, as of classes that were decided already"
    targets = view.targets(batch)
    kind = found.of(outputs, targets, view.inputs(batch))
    if kind is None:
        return NOT_TOLD
    each = kind.sampled_loss(found.to_parameters(outputs, targets)(outputs))
    counts = view.counts(batch, each)
    return torch.where(counts, each, 0.0).sum(), int(counts.sum())


def normalised(factors: KroneckerFactors) -> KroneckerFactors:
    """Divide output moments by one number, so that the mean of the curvature's diagonal is 1.

    Args:
        factors: What was measured. Maps that are not finite do not count. Without output moments
            where nothing is known of those: all gradients are 0, or next to it.

    Example:
        >>> from recall_lightning.measuring.moments import FullMoments
        >>> two = FullMoments(2 * torch.eye(3), torch.ones(()))
        >>> normalised(KroneckerFactors({"w": two}, {"w": two})).outputs["w"].matrix.diagonal()
        tensor([0.5000, 0.5000, 0.5000])
    """
    total, elements = 0.0, 0
    for name, outputs in factors.outputs.items():
        inputs = factors.inputs[name]
        trace = float(inputs.trace) * float(outputs.trace)
        if math.isfinite(trace):
            total += trace
            elements += inputs.width * outputs.width
    mean = total / elements if elements else 0.0
    if not torch.finfo(torch.float32).tiny <= mean < math.inf:  # or its inverse would be infinite
        return replace(factors, outputs={})
    scaled = {name: outputs.scaled(1 / mean) for name, outputs in factors.outputs.items()}
    for name, outputs in factors.outputs.items():
        scaled[name].count = outputs.count  # of tasks
    return replace(factors, outputs=scaled, mean=mean)


class _OutputSums:
    """Sums of the gradients at linear maps' outputs."""

    def __init__(self, widths: Mapping[LinearMap, int], full_width: int, rank: int) -> None:
        self.widths = widths  # of each map's outputs
        self.full_width, self.rank = full_width, rank
        self.clear()

    def clear(self) -> None:
        self.unknown: str | None = None
        self._computed: list[tuple[LinearMap, Tensor, int]] = []
        self._sums: dict[str, FullMoments | LowRankMoments] = {}
        self._counts: Counter[str] = Counter()
        self._samples: dict[str, list[Tensor]] = defaultdict(list)  # their squared norms

    @contextmanager
    def gathered_from(self, module: nn.Module) -> Iterator[None]:
        def register(child: nn.Module, linear_map: LinearMap) -> RemovableHandle:
            return child.register_forward_hook(self._hook_of(linear_map))

        with (
            hooked(module, self.widths, register),
            multiplications(module, self.widths, self._see),
        ):
            yield

    def _see(self, linear_map: LinearMap, owner: nn.Module, given: Tensor, y: Tensor) -> Tensor:
        if not y.requires_grad:
            return y
        self._computed.append((linear_map, y, -1))
        return y.clone()

    def _hook_of(self, linear_map: LinearMap) -> Callable[..., Tensor | None]:
        def hook(child: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            axis = feature_axis(child)
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            units = output.shape[axis]
            groups = 1 if linear_map.rows is None else getattr(child, "groups", 1)
            if units != self.widths[linear_map] * groups:
                return None  # a subclass that does something of its own
            self._computed.append((linear_map, output, axis))
            return output.clone()  # what is computed in place must not change the one kept

        return hook

    def add(self, loss_and_count: tuple[Tensor, int] | str) -> None:
        """Add the gradients of a loss at what was computed since the last, if there is one."""
        computed, self._computed = self._computed, []
        if isinstance(loss_and_count, str):
            self.unknown = self.unknown or loss_and_count
            return
        if not computed:
            return
        loss, count = loss_and_count
        kept = [output for _, output, _ in computed]
        try:
            gradients = torch.autograd.grad(loss, kept, allow_unused=True)
        except RuntimeError as error:  # reentrant checkpoints, operations without a derivative
            self.unknown = f"{type(error).__name__}: {error}"
            return
        finally:
            self._computed = []  # what checkpointed layers computed meanwhile
        for (one, _, axis), gradient in zip(computed, gradients, strict=True):
            if gradient is not None:
                units = gradient.movedim(axis, -1)
                if one.kind == "convolution" and one.rows is not None:  # of its group
                    units = units[..., slice(*one.rows)]
                self._add_samples(one.name, units)
        for name in {one.name for one, _, _ in computed if one.name in self._sums}:
            self._counts[name] += count

    def _add_samples(self, name: str, units: Tensor) -> None:
        """Add gradients, (…, width): both halves of a batch, whose spread tells the noise.

        A whole batch may be the only one.
        """
        width = units.shape[-1]
        if name not in self._sums:
            self._sums[name] = empty_side(width, width > self.full_width, self.rank, units.device)
        with torch.autocast(units.device.type, enabled=False):  # sums want float32
            for half in torch.atleast_2d(units).chunk(2):
                if len(half):  # an expert may have had no token
                    added = self._sums[name].add_sample(half.reshape(-1, width))
                    self._samples[name].append(added)

    def means(self) -> dict[str, Moments]:
        means: dict[str, Moments] = {}
        for name, sums in self._sums.items():
            if float(sums.trace) != 0:  # NaN, too: who uses it will refuse
                sums.noise = noise_of(sums, self._samples[name])
                means[name] = sums.scaled(1 / max(self._counts[name], 1))
                means[name].count = torch.ones_like(sums.count)
        return means


def is_factored(linear_map: LinearMap) -> bool:
    """Tell whether a map's curvature can be had: it is no LoRA update of a layer unknown.

    Example:
        >>> is_factored(LinearMap("a", None, "linear", ("",), 3, second_factor="b"))
        False
    """
    return linear_map.second_factor is None or linear_map.layer is not None


def feature_axis(child: nn.Module) -> int:
    """Return the axis of a map's outputs that counts its units, from the end."""
    if isinstance(child, nn.modules.conv._ConvNd):
        return -1 - len(child.kernel_size)
    return -1
