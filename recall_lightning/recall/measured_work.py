"""What pieces of RecallCallback's work take, measured on a user's model and batch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.batches import batch_size, detached, select_samples
from recall_lightning.measuring.curvature import normalised
from recall_lightning.measuring.generation import AT_ONCE, write_sequences
from recall_lightning.measuring.hidden_states import hidden_states
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.map_check import differentiable, unlike_linear_maps
from recall_lightning.measuring.typical_samples import choose_typical_samples
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.merging.blockwise import Drift
from recall_lightning.merging.head import Predicted, fitted_head
from recall_lightning.merging.quadratic_forgetting import quadratic_forgetting
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.compared_predictions import COMPARED_PREDICTIONS
from recall_lightning.recall.head_refit import draws, fitted_to
from recall_lightning.recall.parts import Parts
from recall_lightning.recall.plasticity import COMPARED_BATCHES, compared_of
from recall_lightning.recall.prepared_merge import PreparedMerge
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.recall.statistics.head_inputs import HeadInputs
from recall_lightning.recall.statistics.moments import MapMoments
from recall_lightning.recall.statistics.prior import TOKENS_AT_ONCE, view_of_writer
from recall_lightning.recall.statistics.recent_batches import RecentBatches, last_with
from recall_lightning.recall.statistics.samples import TypicalSamples, comparison_of
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot

_REPEATS = 3  # whose median counts, after one that does not
_BATCHES, _TOKENS = (1, 4), (8, 32)  # between which a line is drawn, and on to more
_COPIES = 20  # of a batch, as one is too short to be timed

Kind = TypeVar("Kind", bound=Statistic)


@dataclass(frozen=True)
class Work:
    """What is done for one purpose.

    Attributes:
        forward: How often the model is run on a batch without gradients.
        backward: How often forward and backward.
        merges: How many merges are made, those that are tried included.
        seconds: What all that takes.

    Example:
        >>> Work(forward=4, seconds=0.5) + 2 * Work(merges=1, seconds=0.25)
        Work(forward=4, backward=0, merges=2, seconds=1.0)
    """

    forward: int = 0
    backward: int = 0
    merges: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.forward + other.forward,
            self.backward + other.backward,
            self.merges + other.merges,
            self.seconds + other.seconds,
        )

    def __rmul__(self, times: int) -> Work:
        return Work(
            times * self.forward,
            times * self.backward,
            times * self.merges,
            times * self.seconds,
        )


class MeasuredWork:
    """Measures each piece when it is first asked for, and leaves the model as it was.

    Args:
        module: The model.
        batch: A training batch on its device.
        structure: The model's blocks and maps.
        parts: Of the callback.
    """

    def __init__(self, module: nn.Module, batch: Any, structure: Structure, parts: Parts) -> None:
        self._module, self._batch = module, batch
        self._view = view_of(module, parts.run.view)
        self._active = parts.statistics.active
        self._snapshots = 1 if parts.kept.most == "all" else parts.kept.most
        unlike = unlike_linear_maps(module, structure.maps, batch, self._view)
        self._structure = structure.without_maps(unlike)
        self._of_merges: dict[MergeRule, tuple[float, float]] = {}
        self.moments, self._samples = self._statistic(MapMoments), self._statistic(TypicalSamples)

    @property
    def most_batches(self) -> int:
        """How many of a task's last batches are kept."""
        recent = self._statistic(RecentBatches)
        return 0 if recent is None else recent.most

    @property
    def writes(self) -> bool:
        """Whether the model writes down what it knew before its first task."""
        prior = None if self.moments is None else self.moments.prior
        return prior is not None and not prior.is_given and prior.is_known(self._module)

    @cached_property
    def training_step(self) -> float:
        """The seconds of a pass forward and backward in training mode.

        Raises:
            ValueError: If what the model returns has no gradient.
        """
        trained = [each for each in self._module.parameters() if each.requires_grad]

        def step() -> None:
            outputs = differentiable(self._view.forward(self._module, detached(self._batch)))
            if not outputs or not trained:
                raise ValueError(
                    f"what {type(self._module).__name__} returns has no gradient, so it cannot be "
                    "told how long it trains: give it with the weights trainable that you train"
                )
            total = torch.stack([each.sum() for each in outputs]).sum()
            torch.autograd.grad(total, trained, allow_unused=True)

        with undisturbed(self._module), torch.enable_grad():
            self._module.train()
            return self._seconds(step)

    def forward(self, passes: int) -> Work:
        """Run the model without gradients."""
        return Work(forward=passes, seconds=passes * self._forward)

    def compared(self, batches: int) -> int:
        """Return of how many of so many batches the loss tells what a merge costs."""
        return len(compared_of([self._batch] * batches, self._view))

    def predicted(self, batches: int) -> int:
        """Return on how many of so many batches predictions are compared where no merge is made."""
        last = [self._batch] * min(batches, COMPARED_BATCHES)
        return len(last_with(last, COMPARED_PREDICTIONS, self._view))

    def copies(self, batches: int) -> Work:
        """Keep batches in place of older ones."""
        if not self.most_batches:
            return Work()
        recent = RecentBatches(1, in_checkpoints=False)

        def several() -> None:
            for _ in range(_COPIES):
                recent.keep(self._batch)

        return Work(seconds=batches * self._seconds(several) / _COPIES)

    def trial(self) -> Work:
        """Try on a task's first batch what statistics will measure."""
        work = Work() if self._samples is None else self.forward(1)
        if self.moments is not None:
            maps = self._structure.maps
            check = partial(unlike_linear_maps, self._module, maps, self._batch, self._view)
            work += self.measured(1) + Work(backward=1, seconds=self._seconds(check))
        return work

    def measured(self, batches: int) -> Work:
        """Measure the moments of so many of a task's last batches."""
        if self.moments is None:
            return Work()
        maps = self._structure.maps
        chosen = self.moments.measured_of([self._batch] * batches, maps, self._view)
        return self._of_moments(len(chosen), *self._line_of_moments)

    @cached_property
    def written(self) -> Work:
        """Write down what is known, and measure the moments of that."""
        assert self.moments is not None
        settings, seed = self.moments.prior.settings, self.moments.seed
        generator: Any = find_generator(self._module)
        most = getattr(generator.config, "max_position_embeddings", None)
        tokens = min(settings.tokens, most or settings.tokens)
        together, size = min(settings.sequences, AT_ONCE), max(1, TOKENS_AT_ONCE // tokens)
        once, each = self._line(
            lambda few: write_sequences(self._module, together, few, seed), *_TOKENS
        )
        rounds = math.ceil(settings.sequences / AT_ONCE)
        writing = Work(forward=rounds * (tokens - 1), seconds=rounds * (once + tokens * each))
        device = next(self._module.parameters()).device
        ids = torch.zeros(size, tokens, dtype=torch.long, device=device)
        batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        view, maps = view_of_writer(self._module), self._structure.maps
        batches *= math.ceil(settings.sequences / size)
        chosen = self.moments.measured_of(batches, maps, view)
        measured = self._of_moments(len(chosen), *self._measured_line(batches[0], view))
        return writing + self.forward(1) + measured

    def chosen_samples(self) -> Work:
        """Choose typical samples, and run the model under each snapshot on them."""
        if self._samples is None:
            return Work()
        settings, size = self._samples.settings, batch_size(self._batch)
        work = self.forward(self._snapshots * math.ceil(settings.typical / size))
        if settings.sampling == "random":
            return work
        blocks = self._structure.blocks[-1:]
        (deepest,) = hidden_states(self._module, blocks, [self._batch], self._view).values()
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(settings.pool, deepest.shape[1], generator=generator)
        seconds = self._seconds(lambda: choose_typical_samples(states, settings.typical))
        return work + self.forward(math.ceil(settings.pool / size)) + Work(seconds=seconds)

    def similarity(self, rule: MergeRule) -> Work:
        """Compare a snapshot's hidden states with the live model's."""
        assert self._samples is not None
        typical, size = self._samples.settings.typical, batch_size(self._batch)
        few = select_samples(self._batch, torch.arange(min(typical, size)))
        compare = comparison_of(rule)

        def compared() -> None:
            states = hidden_states(self._module, self._structure.blocks, [few], self._view)
            for state in states.values():
                compare(state, state)

        runs = math.ceil(typical / size)
        return Work(forward=runs, seconds=runs * self._seconds(compared))

    def estimate(self) -> Work:
        """Estimate what is forgotten."""
        return Work(seconds=self._told[0])

    def record(self) -> Work:
        """Tell of a merge how far weights have moved, and what is forgotten before and after."""
        return 2 * self.estimate() + Work(seconds=self._told[1])

    def fitted_heads(self, number: int, batches: int) -> Work:
        """Find a classifier's last layer, and fit it so often.

        Args:
            number: How often.
            batches: The task's last. On some of them the model is run, under the live weights, the
                snapshot's and those of each merge.
        """
        if self._head is None:
            return Work()
        passes = 1 + (2 + number) * len(fitted_to([self._batch] * batches, self._view))
        return self.forward(passes) + Work(seconds=number * self._fitting)

    def head_inputs(self, batches: int) -> Work:
        """Find a classifier's last layer, and measure what it is given on so many batches."""
        return self.forward(1 + len(self._head_batches(batches))) if self._head else Work()

    def moved_head_inputs(self, batches: int) -> Work:
        """Measure how far what a classifier's last layer is given has moved."""
        inputs, measured = self._statistic(HeadInputs), self._head_batches(batches)
        return self.forward(len(inputs.moved_of(measured, self._view))) if inputs else Work()

    def _head_batches(self, batches: int) -> list[Any]:
        """Return those of so many batches on which a classifier's last layer is measured."""
        inputs = self._statistic(HeadInputs)
        if inputs is None or self._head is None:
            return []
        return inputs.measured_of([self._batch] * batches, self._view)

    def merges(self, rule: MergeRule, number: int) -> Work:
        """Merge with what was measured; the first merge finds eigenvectors."""
        if not number:
            return Work()
        if rule not in self._of_merges:
            self._of_merges[rule] = self._merge_seconds(rule)
        first, other = self._of_merges[rule]
        return Work(merges=number, seconds=first + (number - 1) * other)

    # How it is measured.

    def _statistic(self, kind: type[Kind]) -> Kind | None:
        return next((each for each in self._active if isinstance(each, kind)), None)

    def _seconds(self, run: Callable[[], object]) -> float:
        run()
        return statistics.median(self._once(run) for _ in range(_REPEATS))

    def _once(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if any(each.is_cuda for each in self._module.parameters()):
            torch.cuda.synchronize()

    def _line(self, run: Callable[[int], object], few: int, more: int) -> tuple[float, float]:
        """Return the seconds that a run of any size takes, and of each one more."""
        low, high = (self._seconds(partial(run, number)) for number in (few, more))
        each = max(0.0, (high - low) / (more - few))
        return max(0.0, low - few * each), each

    @cached_property
    def _forward(self) -> float:
        def several() -> None:
            with undisturbed(self._module):
                for _ in range(COMPARED_BATCHES):
                    self._view.forward(self._module, detached(self._batch))

        return self._seconds(several) / COMPARED_BATCHES

    def _of_moments(self, batches: int, once: float, each: float) -> Work:
        assert self.moments is not None
        seconds = once + batches * each if batches else 0.0
        if self.moments.curvature:
            return Work(backward=batches, seconds=seconds)
        return Work(forward=batches, seconds=seconds)

    @cached_property
    def _line_of_moments(self) -> tuple[float, float]:
        return self._measured_line(self._batch, self._view)

    def _measured_line(self, batch: Any, view: ModelView) -> tuple[float, float]:
        assert self.moments is not None
        tried, maps = self.moments.tried, self._structure.maps
        return self._line(lambda n: tried(self._module, maps, [batch] * n, view), *_BATCHES)

    def _inputs(self, needs: frozenset[str]) -> MergeInputs:
        """Return what a rule is given, of the model and a copy of it that is a little larger."""
        weights = {n: w.detach() for n, w in named_weights(self._module).items()}
        live = {n: w * 1.01 if w.is_floating_point() else w.clone() for n, w in weights.items()}
        given: dict[str, Any] = {}
        if "similarity" in needs:
            given["similarity"] = {block.name: 0.5 for block in self._structure.blocks}
        if "importance" in needs:
            given["importance"] = {n: torch.ones_like(w).float() for n, w in weights.items()}
        if self.moments is not None:
            of_batch = (self._module, self._structure.maps, [self._batch], self._view)
            old, new = (normalised(self.moments.tried(*of_batch)) for _ in range(2))
            given |= {"old_moments": old.inputs, "old_output_moments": old.outputs}
            given |= {"new_moments": new.inputs, "new_output_moments": new.outputs}
            given["curvature_mean"] = old.mean or math.nan
        return MergeInputs(self._structure, live, weights, **given)

    def _merge_seconds(self, rule: MergeRule) -> tuple[float, float]:
        """Return the seconds of the first merge with what was measured, and of another."""
        taken = []
        for _ in range(1 + _REPEATS):
            prepared = PreparedMerge(rule, [self._inputs(rule.needs)] * self._snapshots, {})
            merge = partial(_merge, prepared)
            taken.append((self._once(merge), self._once(merge)))
        first, other = zip(*taken[1:], strict=True)
        return statistics.median(first), statistics.median(other)

    @cached_property
    def _head(self) -> LinearMap | None:
        inputs = self._statistic(HeadInputs)
        if inputs is None:
            return None
        return inputs.expected_head(self._structure, self._module, self._batch)

    @cached_property
    def _fitting(self) -> float:
        """The seconds of fitting the last layer once."""
        assert self._head is not None
        weights = named_weights(self._module)
        weight = weights[self._head.weight].detach()
        bias = None if self._head.bias is None else weights[self._head.bias].detach()
        generator = torch.Generator().manual_seed(0)
        number = draws(self._head)
        drawn = torch.randn(number, self._head.inputs, generator=generator).to(weight)
        old, new = (
            Predicted(rows.float(), (rows @ weight.T).float().softmax(dim=1))
            for rows in (drawn, -drawn[: number // 2])
        )
        return self._seconds(partial(fitted_head, weight, bias, old, new, 1.0))

    @cached_property
    def _told(self) -> tuple[float, float]:
        """The seconds of an estimate of what is forgotten, and of how far weights have moved."""
        inputs = self._inputs(frozenset())
        drift = Drift(Snapshot(inputs.snapshot))
        return (
            self._seconds(partial(quadratic_forgetting, inputs)),
            self._seconds(partial(drift.by_block, inputs.live, inputs.blocks)),
        )


def _merge(prepared: PreparedMerge) -> None:
    prepared.write(prepared.weights(1.0), check_finite=False)
