"""Proof that examples packed into one row do not see each other, on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.measuring.isolation import undisturbed

_LONGEST = 4096  # tokens of the row that is tried
_EDGES = (16, 4)  # of each example, so many tokens from its front and its end are looked at


def packing_fault(
    module: nn.Module, tokens: Sequence[int], length: int, run: Callable[..., Any] | None = None
) -> str | None:
    """Tell what is wrong with training a model on packed examples, or return None.

    Three random examples are packed into a row. For each of them all tokens of the two others are
    exchanged: nothing that any layer computes for the first may change. In a model that keeps them
    apart nothing does, to the bit, in whatever dtype it computes; a mixture of experts computes its
    tokens in other groups, and may differ by what exchanging another row of a plain batch does.
    Each example's logits, and what they are made from, must also be those of the example alone,
    within rounding, so its positions are right. A model in which not even an example's own earlier
    tokens change anything at its end proves nothing, and is refused.

    The module is left as it was, and so are random states.

    Args:
        module: Takes ``input_ids`` and ``position_ids`` or ``attention_mask``, returns ``logits``.
        tokens: Ordinary tokens of the vocabulary, none of which has a meaning of its own.
        length: Tokens of the packed row.
        run: Calls the module, if that needs more than calling it.

    Returns:
        The fault, as the end of a sentence.
    """
    with undisturbed(module):
        try:
            return _fault(_Probe(module, run or module), _Examples(tokens, length))
        except _CannotRunError as error:
            return f"it cannot run them ({error})"


def _fault(probe: _Probe, examples: _Examples) -> str | None:
    first = [examples.of(i) for i in range(3)]
    others = [examples.of(i, changed=True) for i in range(3)]
    alone = [probe.alone([one])[0] for one in first]
    if not all(seen.finite for seen in alone):
        return "its predictions are no numbers, of which nothing can be seen"
    packed = probe.packed(first)
    end = len(first[0]) - _EDGES[1]
    begun = torch.cat([others[0][:end], first[0][end:]])
    if not probe.alone([begun])[0].moved(alone[0], end) > 0:
        return "with its present weights no token sees an earlier one, so nothing can be shown"

    beside = [probe.alone([first[0], examples.drawn(len(first[0]))])[0] for _ in range(2)]
    regrouped = beside[0].moved(beside[1])
    rounding = beside[0].predicts_otherwise(alone[0])
    for kept in range(3):
        row = [first[i] if i == kept else others[i] for i in range(3)]
        if packed[kept].moved(probe.packed(row)[kept]) > 8 * regrouped + 1e-6:
            return "its examples see each other"
    allowed = 8 * rounding + (1e-4 if probe.precision < 1e-6 else 4 * probe.precision)
    for together, single in zip(packed, alone, strict=True):
        if together.predicts_otherwise(single) > allowed:
            return "an example is predicted otherwise there than alone, as its positions are others"
    return None


class _CannotRunError(Exception):
    pass


class _Examples:
    """Random examples, and others of the same lengths without a token in common at any place."""

    def __init__(self, tokens: Sequence[int], length: int) -> None:
        total = max(16, min(length, _LONGEST))
        self._lengths = [total * 2 // 5, total // 3]
        self._lengths.append(total - sum(self._lengths))
        self._tokens = torch.tensor(tokens)
        self._generator = torch.Generator().manual_seed(0)
        self._drawn = [self._draw(size) for size in self._lengths]

    def of(self, index: int, changed: bool = False) -> Tensor:
        """One of the three, int64 ``(L,)``, or another in its place."""
        drawn = self._drawn[index]
        if changed:
            steps = torch.randint(1, len(self._tokens), drawn.shape, generator=self._generator)
            drawn = (drawn + steps) % len(self._tokens)
        return self._tokens[drawn]

    def drawn(self, length: int) -> Tensor:
        """One more, of any length."""
        return self._tokens[self._draw(length)]

    def _draw(self, length: int) -> Tensor:
        return torch.randint(len(self._tokens), (length,), generator=self._generator)


@dataclass
class _Seen:
    """What was computed for some places of one example: by what took it in, ``(places, width)``."""

    places: list[int]
    taken_in: dict[str, Tensor]
    predicted: list[Tensor]  # logits, and what they were made from

    @property
    def finite(self) -> bool:
        return all(bool(value.isfinite().all()) for value in self.predicted)

    def moved(self, other: _Seen, since: int = 0) -> float:
        """How far any value is from another run's, by the values' mean size."""
        rows = [i for i, place in enumerate(self.places) if place >= since]
        pairs = [
            (value[rows], other.taken_in[name][rows])
            for name, value in self.taken_in.items()
            if name in other.taken_in and other.taken_in[name].shape == value.shape
        ]
        return max((_far(a, b, b.abs().mean()) for a, b in pairs), default=0.0)

    def predicts_otherwise(self, other: _Seen) -> float:
        """How far predictions are from another run's, by the largest of them."""
        pairs = zip(self.predicted, other.predicted, strict=True)
        return max(_far(a, b, b.abs().max()) for a, b in pairs)


def _far(value: Tensor, other: Tensor, size: Tensor) -> float:
    far = (value - other).abs().max()
    return 0.0 if far == 0 else float(far / size.clamp(min=torch.finfo(size.dtype).tiny))


class _Probe:
    """Runs examples and keeps what each layer was given for some places of each."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        self._module, self._run = module, run
        self._device = next(module.parameters()).device
        self.precision = 0.0  # of the coarsest dtype that was met

    def packed(self, examples: Sequence[Tensor]) -> list[_Seen]:
        """Run examples in one row, with positions that start anew for each."""
        begins = accumulate((len(each) for each in examples[:-1]), initial=0)
        positions = torch.cat([torch.arange(len(each)) for each in examples])
        batch = {"input_ids": torch.cat(list(examples))[None], "position_ids": positions[None]}
        try:
            return self._seen(batch, examples, [(0, at) for at in begins])
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError) as error:
            said = str(error).strip().partition("\n")[0]
            raise _CannotRunError(f"{type(error).__name__}: {said}") from error

    def alone(self, examples: Sequence[Tensor]) -> list[_Seen]:
        """Run examples of one length in a row each."""
        ids = torch.stack(list(examples))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self._seen(batch, examples, [(i, 0) for i in range(len(examples))])

    def _seen(
        self, batch: Mapping[str, Tensor], examples: Sequence[Tensor], at: list[tuple[int, int]]
    ) -> list[_Seen]:
        batch = {k: v.to(self._device) for k, v in batch.items()}
        places = [_edges(len(each)) for each in examples]
        rows, columns = batch["input_ids"].shape
        picked = [
            torch.tensor([row * columns + begin + place for place in own], device=self._device)
            for (row, begin), own in zip(at, places, strict=True)
        ]
        taken_in: list[dict[str, Tensor]] = [{} for _ in examples]

        def keep(name: str, value: Any) -> None:
            flat = _by_token(value, rows, columns)
            if flat is None:
                return
            self.precision = max(self.precision, torch.finfo(flat.dtype).eps)
            for own, where in zip(taken_in, picked, strict=True):
                calls = sum(key.startswith(f"{name}#") for key in own)
                own[f"{name}#{calls}"] = flat[where.to(flat.device)].float()

        with _tapped(self._module, keep):
            keep("logits", self._run(**batch).logits)
        return [
            _Seen(at_places, own, list(own.values())[-2:])
            for at_places, own in zip(places, taken_in, strict=True)
        ]


def _edges(length: int) -> list[int]:
    front, end = _EDGES
    return sorted({*range(min(front, length)), *range(max(0, length - end), length)})


def _by_token(value: Any, rows: int, columns: int) -> Tensor | None:
    """Return a layer's input as ``(tokens, width)``, if that is what it is."""
    if type(value) is not Tensor or not value.is_floating_point() or value.dim() < 2:
        return None
    if value.shape[:2] == (rows, columns):
        return value.reshape(rows * columns, -1)
    return value.reshape(rows * columns, -1) if value.shape[0] == rows * columns else None


@contextmanager
def _tapped(module: nn.Module, keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Tell what each layer that has weights, and no parts, is given."""
    handles = []
    for name, layer in module.named_modules():
        if next(layer.children(), None) is None and next(layer.parameters(), None) is not None:

            def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if args:
                    keep(name, args[0])

            handles.append(layer.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
