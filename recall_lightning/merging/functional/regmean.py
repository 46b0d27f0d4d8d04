"""Regression means: linear maps merged so that each keeps its outputs on its own inputs."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.operands import (
    check_count,
    check_models,
    check_shares,
    rounded,
)
from recall_lightning.weights.finite import all_finite


class NormalEquations:
    """The least-squares problem X (G + r·I) = B, for second moments G of inputs.

    Solved by a Cholesky factorisation, in the moments' precision.

    Args:
        moments: G, (width, width) symmetric, or its diagonal alone, (rows).
        ridge: r ≥ 0.

    Example:
        >>> equations = NormalEquations(torch.diag(torch.tensor([1.0, 3.0])), ridge=1.0)
        >>> equations.solve(torch.tensor([[2.0, 2.0]])), round(equations.condition, 4)
        (tensor([[1.0000, 0.5000]]), 2.0)
    """

    def __init__(self, moments: Tensor, ridge: float) -> None:
        if moments.ndim == 1:
            self._matrix = self._factor = moments + ridge
            self.failed = bool((self._factor <= 0).any())
            return
        self._matrix = moments.clone()
        self._matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(self._matrix)
        self._factor = factor
        self.failed = bool(failed)

    @property
    def singular(self) -> bool:
        """Whether some direction has no input beyond rounding, so that no solution is unique.

        What a pivot leaves of its diagonal entry is rounding error alone where columns are
        dependent. Scales of single inputs do not matter.
        """
        if self.failed or self._factor.ndim == 1:
            return self.failed
        level = self._matrix.diagonal()
        least = 10 * len(level) * torch.finfo(level.dtype).eps * level
        return bool((self._factor.diagonal().square() <= least).any())

    @cached_property
    def condition(self) -> float:
        """The condition number (1-norm) of a matrix G + r·I; infinite if it has no factors."""
        if self.failed:
            return math.inf
        inverse = torch.cholesky_inverse(self._factor)
        return float(torch.linalg.norm(self._matrix, 1) * torch.linalg.norm(inverse, 1))

    def solve(self, right: Tensor) -> Tensor:
        """Return X for B: (…, width), or (rows, …) of a diagonal's."""
        if self._factor.ndim == 1:
            return right / self._factor[:, None]
        return torch.cholesky_solve(right.T, self._factor).T


def regmean(
    models: Sequence[Tensor],
    weights: Sequence[float],
    moments: Sequence[Tensor],
    *,
    ridge: float = 0.01,
    off_diagonal_scale: float = 1.0,
) -> Tensor:
    """Merge linear maps so that each keeps its outputs on its own inputs, by least squares.

    W = (Σ wᵢWᵢGᵢ + r·W_mix)(Σ wᵢGᵢ + r·I)⁻¹, the minimiser of Σ wᵢ E‖(W − Wᵢ)xᵢ‖² + r‖W − W_mix‖²,
    with W_mix = Σ wᵢWᵢ / Σ wᵢ and r = ridge · tr(Σ wᵢGᵢ) / d. Where the models are equal, or no
    input was ever seen, that is W_mix. Source: RegMean, Jin et al. (arXiv 2212.09849), eq. 2; the
    ridge is this project's.

    Args:
        models: The weight of every model, (out, in) of a linear map or (rows, dim) of an embedding.
        weights: One number a model, not negative; they count relative to one another.
        moments: Of each model, for a linear map the symmetric E[xxᵀ] of its inputs, (in, in); for
            an embedding how often each row was looked up, (rows,). Not normalised, a model counts
            by its number of inputs.
        ridge: How much W_mix counts in directions that hardly any input has; 0 is plain RegMean.
        off_diagonal_scale: Multiplies the moments off the diagonal, in [0, 1] (α of the paper, 0.9
            there); 1 leaves them, and embeddings have none.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64; rounded once.

    Raises:
        ValueError: If counts or shapes differ, anything is not floating point or not finite, a
            weight or an option is outside its range, or the moments are singular at this ridge.

    Example:
        >>> models = [torch.tensor([[1.0, 5.0]]), torch.tensor([[7.0, 2.0]])]
        >>> seen = [torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))]
        >>> regmean(models, [1, 1], seen, ridge=0.0)
        tensor([[1., 2.]])
    """
    check_models(models, weights)
    check_shares(weights)
    _check_moments(moments, models)
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge={ridge!r} must be a finite number from 0 on")
    if not 0 <= off_diagonal_scale <= 1:
        raise ValueError(f"off_diagonal_scale={off_diagonal_scale!r} must lie in [0, 1]")
    shares = [weight / sum(weights) for weight in weights]
    own = [model.detach().double() for model in models]
    mixed = torch.zeros_like(own[0])
    for weight, share in zip(own, shares, strict=True):
        mixed.add_(weight, alpha=share)
    grams = [
        share * _damped(gram.detach().to(mixed), off_diagonal_scale)
        for gram, share in zip(moments, shares, strict=True)
    ]
    total = torch.stack(grams).sum(0)
    diagonal = total if total.ndim == 1 else total.diagonal()
    if mixed.numel() == 0 or (ridge > 0 and bool((diagonal == 0).all())):
        return rounded(mixed, models[0])
    # solved for the distance from W_mix, which is well conditioned where the models are alike
    pulls = [_times(weight - mixed, gram) for weight, gram in zip(own, grams, strict=True)]
    equations = NormalEquations(total, ridge * float(diagonal.mean()))
    if equations.singular:
        raise ValueError(
            f"the moments leave directions without any input, which ridge={ridge!r} cannot "
            "settle: use a larger one, such as 0.01"
        )
    return rounded(mixed + equations.solve(torch.stack(pulls).sum(0)), models[0])


def _check_moments(moments: Sequence[Tensor], models: Sequence[Tensor]) -> None:
    if models[0].ndim != 2:
        raise ValueError(
            f"models[0] has the shape {tuple(models[0].shape)}: regmean is for matrices, "
            "merge the other weights with linear"
        )
    check_count("moments", moments, models)
    rows, columns = models[0].shape
    for index, gram in enumerate(moments):
        if gram.shape not in ((columns, columns), (rows,)) or gram.shape != moments[0].shape:
            raise ValueError(
                f"moments[{index}] has the shape {tuple(gram.shape)}: for weights of the shape "
                f"{(rows, columns)} give all as {(columns, columns)}, or embeddings' as {(rows,)}"
            )
        diagonal = gram if gram.ndim == 1 else gram.diagonal()
        if not gram.is_floating_point() or not all_finite(gram) or bool((diagonal < 0).any()):
            raise ValueError(
                f"moments[{index}] must hold finite floating-point numbers, on the diagonal none "
                "below 0"
            )


def _damped(gram: Tensor, off_diagonal_scale: float) -> Tensor:
    if gram.ndim == 1 or off_diagonal_scale == 1:
        return gram
    return gram * off_diagonal_scale + torch.diag(gram.diagonal() * (1 - off_diagonal_scale))


def _times(distance: Tensor, gram: Tensor) -> Tensor:
    return distance * gram[:, None] if gram.ndim == 1 else distance @ gram


REGMEAN = MergeMethod(
    regmean,
    summed="without statistics",  # biases and norms have no moments
    normalize=True,
    statistics="moments",
    former_name="subspace",
)
