"""What a classifier's last layer was given in a task: a normal distribution for each class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recall_lightning.checks import FormError
from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    moments_from,
)

_FEW = 4  # inputs, of which no mean is kept


@dataclass(frozen=True)
class InputMixture:
    """Normal distributions of one covariance, of as many inputs as came in each group.

    The groups are classes as the model predicts them: a task's inputs lie around several points,
    and their second moments alone do not tell where (the statistics of classifier alignment, as in
    SLCA, Zhang et al., arXiv 2303.05118, here without labels).

    Inputs of groups of fewer than four make up one more, and are left out if they are fewer
    together: no mean is that of one input or two. So of a few inputs nothing is known.

    Attributes:
        counts: Inputs of each group, and of those together, (groups + 1) float32.
        means: Their means, (groups + 1, width) float32; 0 of a group without any.
        within: Second moments of what is left around those.

    Example:
        >>> inputs, classes = torch.arange(10.0)[:, None], torch.tensor([0] * 4 + [2] * 5 + [1])
        >>> mixture = InputMixture.of(inputs, classes, 3, FullMoments.empty(1))
        >>> mixture.counts.tolist(), mixture.means.flatten().tolist()
        ([4.0, 0.0, 5.0, 0.0], [1.5, 0.0, 6.0, 0.0])
        >>> drawn, groups = mixture.drawn(18, torch.Generator().manual_seed(0))
        >>> drawn.shape, groups.bincount()  # 8 around 1.5, 10 around 6
        (torch.Size([18, 1]), tensor([ 8,  0, 10]))
    """

    counts: Tensor
    means: Tensor
    within: Moments

    @classmethod
    def of(
        cls,
        inputs: Tensor,
        groups: Tensor,
        number: int,
        within: Moments,
        total: Callable[[Tensor], Tensor] = torch.clone,
    ) -> InputMixture:
        """Measure inputs.

        Args:
            inputs: (inputs, width), any floating dtype.
            groups: The group of each, int64.
            number: How many groups there are.
            within: Empty moments of that width, which what is left is added to.
            total: Adds what all processes have.
        """
        given = inputs.float()
        found = total(groups.bincount(minlength=number).float())
        groups = torch.where(found[groups] < _FEW, number, groups)
        sums = given.new_zeros(number + 1, given.shape[1] + 1)
        ones = torch.ones_like(given[:, :1])
        sums = total(sums.index_add_(0, groups, torch.cat([given, ones], dim=1)))
        counts = sums[:, -1].clone()
        means = sums[:, :-1] / counts.clamp(min=1)[:, None]
        if counts[-1] < _FEW:
            counts[-1], means[-1] = 0, 0
        counted = counts[groups] > 0
        within.update((given - means[groups])[counted])
        return cls(counts, means, within)

    @property
    def is_known(self) -> bool:
        """Whether there were inputs enough, and all were finite."""
        finite = bool(self.means.isfinite().all()) and bool(self.within.trace.isfinite())
        return finite and bool(self.counts.sum() > 0)

    def at(self, means: Tensor) -> InputMixture:
        """Return the mixture with other means, and as far spread around them."""
        return InputMixture(self.counts, means, self.within)

    def drawn(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return about so many inputs: of each group its part, at least one if it has any.

        Returns:
            (inputs, width) float32, the same for the same state of the generator, on any device,
            and the group of each, int64.
        """
        parts = (self.counts * number / self.counts.sum()).round().clamp(min=1)
        parts = torch.where(self.counts > 0, parts, 0).long()
        groups = torch.arange(len(parts), device=parts.device).repeat_interleave(parts)
        noise = _noise(self.within.mean(), len(groups), generator)
        return self.means[groups] + noise, groups

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors."""
        return {"counts": self.counts, "means": self.means, "within": self.within.state_dict()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> InputMixture:
        """Return what had this :meth:`state_dict`.

        Raises:
            KeyError: If an entry is missing.
            FormError: If one is not such as was measured.
        """
        found = cls(state["counts"], state["means"], moments_from(state["within"]))
        shape = (len(found.counts), found.within.width)
        if found.means.shape != shape:
            raise FormError(f"has means of shape {tuple(found.means.shape)}, not {shape}")
        if {found.counts.dtype, found.means.dtype} != {torch.float32} or not found.is_known:
            raise FormError("holds other than finite float32 numbers of some inputs")
        return found


def _noise(moments: Moments, number: int, generator: torch.Generator) -> Tensor:
    """Draw from the normal distribution around 0 that has these second moments."""

    def normal(width: int) -> Tensor:
        drawn = torch.randn(number, width, generator=generator, dtype=torch.float32)
        return drawn.to(moments.count.device)

    if isinstance(moments, LowRankMoments):
        own = normal(moments.width) * moments.rest.clamp(min=0).sqrt()
        return normal(len(moments.factor)) @ moments.factor + own
    assert isinstance(moments, FullMoments)
    values, vectors = moments.spectrum
    return (normal(moments.width) * values.sqrt()) @ vectors.T
