"""Weighted sums of tensors, chunk by chunk, correctly rounded to the precision of the result."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recall_lightning.weights.chunks import chunk_size

Term = tuple[Tensor, float | Tensor]

_ROW = 64  # elements that are computed anew together where a quick result is in doubt
# explicit bits of the mantissa and the least normal exponent
_HALF_PRECISIONS = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}


class WeightedSums:
    """Computes Σᵢ wᵢ · tensorᵢ in chunks, in memory that is taken once.

    Sums are accumulated in float64 and rounded once, to nearest, ties to even, so that a result in
    half or single precision is off by half a unit in its last place at most, and the order of the
    tensors does not matter. float64 has nothing wider to be summed in: there differences from the
    first tensor are added up, so that equal tensors come back as they are there too.

    Args:
        dtype: Of the results, floating point.
        device: Where it is computed and the results lie.
        most: The most elements of a tensor; None for any number.

    Example:
        >>> sums = WeightedSums(torch.float16)
        >>> [chunk.tolist() for chunk in sums.chunks([torch.ones(3), torch.zeros(3)], [0.5, 0.5])]
        [[0.5, 0.5, 0.5]]
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", most: int | None = None
    ) -> None:
        self._dtype, self._device = dtype, torch.device(device)
        step = chunk_size(self._device)
        size = 4 * step if self._device.type == "cpu" else step  # results are narrower than sums
        self._size = size if most is None else max(1, min(size, most))
        self._total = torch.empty(min(step, self._size), dtype=torch.float64, device=device)
        self._scratch = torch.empty_like(self._total)
        self._results = [torch.empty(self._size, dtype=dtype, device=device) for _ in range(3)]

    def chunks(
        self, tensors: Sequence[Tensor], weights: Sequence[float | Tensor]
    ) -> Iterator[Tensor]:
        """Yield the sum as flat chunks in order.

        A chunk is valid until the one after the next is asked for, be it of another sum, so that
        it can be written while the next is computed. Nothing is checked.

        Args:
            tensors: Of one shape, on any devices.
            weights: A finite weight, or a tensor that broadcasts to the shape, for each.
        """
        shape = tensors[0].shape
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        factors = [w.expand(shape).reshape(-1) if isinstance(w, Tensor) else w for w in weights]
        place = self._place_between(flat, factors)
        for start in range(0, shape.numel(), self._size):
            part = slice(start, min(start + self._size, shape.numel()))
            terms = [
                (tensor[part].to(self._device), _part(factor, part, self._device))
                for tensor, factor in zip(flat, factors, strict=True)
            ]
            self._results = [*self._results[1:], self._results[0]]
            out = self._results[0][: part.stop - start]
            if place is None or not self._lerp_(out, terms, place):
                place = None  # where much is in doubt, it is so everywhere
                self._sum_(out, terms)
            yield out

    def _place_between(
        self, tensors: Sequence[Tensor], weights: Sequence[float | Tensor]
    ) -> float | None:
        """Return w if the sum is first + w · (second − first) in half precision, else None."""
        if len(tensors) != 2 or self._dtype not in _HALF_PRECISIONS:
            return None
        if any(tensor.dtype != self._dtype for tensor in tensors):
            return None
        first, second = weights
        if isinstance(first, Tensor) or isinstance(second, Tensor):
            return None
        return second if 0 < second < 1 and abs(first + second - 1) < 1e-12 else None

    def _sum_(self, out: Tensor, terms: Sequence[Term]) -> None:
        step = len(self._total)
        for start in range(0, len(out), step):
            part = slice(start, min(start + step, len(out)))
            own = [(tensor[part], _part(weight, part, self._device)) for tensor, weight in terms]
            total, scratch = self._total[: part.stop - start], self._scratch[: part.stop - start]
            if torch.float64 in (self._dtype, *(tensor.dtype for tensor, _ in own)):
                _accumulate_anchored_(total, own)
            else:
                _accumulate_(total, own, scratch)
            if self._dtype in _HALF_PRECISIONS:
                _round_to_half_precision_(total, scratch, self._dtype)
            out[part] = total

    def _lerp_(self, out: Tensor, terms: Sequence[Term], place: float) -> bool:
        """Write the same sum of two in half precision, mostly by arithmetic in float32.

        Rounding is monotone: where weights a little below and above give one result, it is that of
        the exact sum. The margin exceeds float32's error: two numbers of half precision differ by
        their spacing at least, 2^-m of the larger one's power of two with m bits of mantissa, and
        float32 errs by 2^-24 of that power. Rows with other elements are summed anew; with too many
        of them nothing is gained, and False is returned, as where float32 does not suffice.
        """
        first, second = (tensor for tensor, _ in terms)
        margin = 2.0 ** -(23 - _HALF_PRECISIONS[self._dtype][0])
        above = self._results[1][: len(out)]  # of what was yielded before the last
        torch.lerp(first, second, place - margin, out=out)
        torch.lerp(first, second, place + margin, out=above)
        whole = len(out) // _ROW * _ROW
        differing = above[:whole].view(torch.int16).bitwise_xor_(out[:whole].view(torch.int16))
        lanes = differing.view(torch.int32).view(-1, _ROW // 2)
        rows = (lanes.amax(dim=1) | lanes.amin(dim=1)).nonzero().flatten()
        if 4 * len(rows) > len(lanes):
            return False
        if len(rows):
            anew = above[: len(rows) * _ROW]
            self._sum_(anew, [(t[:whole].view(-1, _ROW)[rows].flatten(), w) for t, w in terms])
            out[:whole].view(-1, _ROW)[rows] = anew.view(-1, _ROW)
        if whole < len(out):
            self._sum_(out[whole:], [(tensor[whole:], weight) for tensor, weight in terms])
        return math.isfinite(out.sum())  # second − first may exceed float32 where no sum does


def _part(weight: float | Tensor, part: slice, device: torch.device) -> float | Tensor:
    return weight[part].to(device) if isinstance(weight, Tensor) else weight


def _accumulate_(total: Tensor, terms: Sequence[Term], scratch: Tensor) -> None:
    """Add up, tensors of equal weight first: the order in which they are given must not matter.

    Decimal weights make many sums fall next to the middle between two results, where float64's
    last bit decides.
    """
    groups: dict[float, list[Tensor]] = {}
    for tensor, weight in terms:
        if not isinstance(weight, Tensor):
            groups.setdefault(weight, []).append(tensor)
    if not groups:
        total.zero_()
    for number, weight in enumerate(sorted(groups)):
        first, *others = groups[weight]
        if others:
            first = scratch.copy_(first)
            for tensor in others:
                first += tensor
        if number == 0:
            total.copy_(first).mul_(weight)
        else:
            total.add_(first, alpha=weight)
    for tensor, weight in terms:
        if isinstance(weight, Tensor):
            total.addcmul_(tensor.double(), weight.double())


def _accumulate_anchored_(total: Tensor, terms: Sequence[Term]) -> None:
    """Add up differences from the first tensor."""
    anchor = terms[0][0].double()
    weights = [weight for _, weight in terms]
    if any(isinstance(weight, Tensor) for weight in weights):
        share = sum(weights)
    else:
        share = math.fsum(weights)
    torch.mul(anchor, share, out=total)
    for tensor, weight in terms[1:]:
        total.addcmul_(tensor.double() - anchor, torch.as_tensor(weight).to(total))


def _round_to_half_precision_(values: Tensor, grid: Tensor, dtype: torch.dtype) -> None:
    """Round float64 to the grid of ``dtype``, once: torch's cast rounds to float32 in between.

    Adding 1.5 · 2^52 spacings of the grid pushes all finer bits out of the mantissa.
    """
    mantissa, least = _HALF_PRECISIONS[dtype]
    powers = grid.view(torch.int64)
    torch.bitwise_and(values.view(torch.int64), 0x7FF0000000000000, out=powers)
    grid.clamp_(2.0**least, 2.0**128)  # an infinity or NaN must not become a grid
    values.add_(grid, alpha=1.5 * 2.0 ** (52 - mantissa))
    values.sub_(grid, alpha=1.5 * 2.0 ** (52 - mantissa))
