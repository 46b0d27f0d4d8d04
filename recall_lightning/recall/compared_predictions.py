"""What a model predicts on batches that are at hand, under one set of weights and another."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.measuring.batches import detached, tensors_of
from recall_lightning.measuring.forward import (
    arguments_of,
    called_module,
    is_compiled_in_place,
    uncompiled,
)
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.predictions import FoundPredictions
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.statistics.recent_batches import last_with

COMPARED_PREDICTIONS = 512  # of each process: vocabularies are large


class ComparedPredictions:
    """The parameters of up to 512 predictions, of as many of the last batches as hold those.

    Where a ``training_step`` that runs on those batches anyway is watched (:meth:`watched`), its
    outputs are taken; for all others the model is run.

    Args:
        context: The task.
        run: How the model is run.
        found: Of which kind its predictions are.
        batches: On the model's device.
    """

    def __init__(
        self, context: TaskContext, run: ModelRun, found: FoundPredictions, batches: Sequence[Any]
    ) -> None:
        self._run, self._found = run, found
        self._view = view_of(context.pl_module, run.view)
        self._batches = last_with(batches, COMPARED_PREDICTIONS, self._view)
        self._first = len(batches) - len(self._batches)
        self._called = None if is_sharded(context.trainer) else self._heard_module(context)
        self._heard: dict[int, Tensor] = {}

    @contextmanager
    def watched(self, number: int, given: Any) -> Iterator[None]:
        """Take the outputs of a step that runs inside the block, if the view would have the same.

        That is where the step calls what the view calls, once, with just what the view gives it.

        Args:
            number: Of the batch, among those of the start.
            given: The copy of it that the step is given.
        """
        own = number - self._first
        self._heard.pop(own, None)
        if self._called is None or own < 0:
            yield
            return
        calls: list[Tensor | None] = []
        wanted = _wanted(self._called, given)  # a step may replace what its batch holds

        def hear(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            same = not (calls or module.training) and _is_given(module, wanted, args, kwargs)
            calls.append(None)
            if same:
                with suppress(Exception):  # comes again where the model is run for it
                    calls[0] = self._of_batch(output, self._batches[own])

        handle = self._called.register_forward_hook(hear, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        if len(calls) == 1 and calls[0] is not None:
            self._heard[own] = calls[0]

    def taken(self, context: TaskContext) -> list[Tensor] | None:
        """Return them under the weights as they are, batch by batch, (predictions, parameters).

        To be called right after the steps that were watched. Where the model is run, that is
        undisturbed: a step may have left it in another mode.

        Returns:
            float32; None where the model cannot be run, or its predictions contradict their kind.
        """
        heard, self._heard = self._heard, {}
        numbered = list(enumerate(self._batches))
        if len(heard) == len(numbered):
            return [heard[number] for number, _ in numbered]

        def of_batches(some: Sequence[tuple[int, Any]]) -> list[Tensor | None]:
            return [
                heard[number]
                if number in heard
                else self._of_batch(view.forward(context.pl_module, detached(one)), one)
                for number, one in some
            ]

        try:
            with undisturbed(context.pl_module), self._run.ready(context) as view:
                each = self._run.evenly(context.trainer, numbered, of_batches)
        except ValueError:
            return None
        return [rows for rows in each if rows is not None]

    def _of_batch(self, output: Any, batch: Any) -> Tensor | None:
        """Return the parameters of a batch's predictions, (predictions, parameters) float32."""
        view = self._view
        outputs, targets = view.logits(output), view.targets(batch)
        if outputs is None or self._found.of(outputs, targets, view.inputs(batch)) is None:
            return None
        outputs = outputs.detach()
        parameters = self._found.to_parameters(outputs, targets)(outputs)
        rows = parameters[view.counts(batch, parameters[..., 0])]
        most = max(1, COMPARED_PREDICTIONS // len(self._batches))
        return rows[:: max(1, math.ceil(len(rows) / most))].float()

    def _heard_module(self, context: TaskContext) -> nn.Module | None:
        """Return what the view calls; None where that is not known, or compiled with its hooks."""
        view = self._view
        if "forward" in vars(view) or type(view).forward is not ModelView.forward:
            return None
        with suppress(ValueError):
            called = called_module(context.pl_module)
            if not is_compiled_in_place(called):
                return called
        return None


_Wanted = tuple[dict[str, Any], list[Tensor]]


def _wanted(module: nn.Module, batch: Any) -> _Wanted | None:
    """Return what a view gives a module of a batch, by name, and the tensors in it."""
    try:
        wanted_args, wanted_kwargs = arguments_of(module, batch)
        named = _by_name(module, wanted_args, wanted_kwargs)
    except (TypeError, ValueError):
        return None
    return named, list(tensors_of(named))


def _is_given(module: nn.Module, wanted: _Wanted | None, args: Any, kwargs: Any) -> bool:
    """Tell whether a module is given what a view would give it, unchanged, and no more.

    Either may leave labels out, as what is predicted does not depend on them.
    """
    if wanted is None:
        return False
    named, tensors = dict(wanted[0]), wanted[1]
    try:
        given = _by_name(module, args, kwargs)
    except TypeError:
        return False
    now = list(tensors_of(named))
    unchanged = len(now) == len(tensors) and all(map(operator.is_, now, tensors))
    if None in (named.get("labels"), given.get("labels")):
        named.pop("labels", None)
        given.pop("labels", None)
    return (
        unchanged
        and named.keys() == given.keys()
        and all(value is given[name] for name, value in named.items())
        and all(tensor._version == 0 for tensor in tensors_of(named))
    )


def _by_name(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return all arguments of a call of a module, defaults too, by name."""
    bound = inspect.signature(uncompiled(module).forward).bind(*args, **kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            named |= {f"*{place}": value for place, value in enumerate(named.pop(parameter.name))}
    return named
