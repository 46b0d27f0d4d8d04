"""Methods that weigh by second moments: of gradients (importance), of inputs (subspace)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.merging.functional.operands import (
    check_alike,
    check_count,
    check_models,
    check_shares,
    rounded,
)
from recall_lightning.weights.chunks import chunk_size
from recall_lightning.weights.finite import all_finite


def importance(
    models: Sequence[Tensor], weights: Sequence[float], importances: Sequence[Tensor]
) -> Tensor:
    """Average every entry by how much each model depends on it: Σ wᵢFᵢθᵢ / Σ wᵢFᵢ.

    Where no model has any importance the entry is the plain average Σ wᵢθᵢ / Σ wᵢ. Source: Fisher
    merging, Matena and Raffel (arXiv 2111.09832), with the diagonal of the Fisher information.

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, not negative; they count relative to one another.
        importances: Of each model, F ≥ 0 in the shape of its weight: mean squared gradients, or
            what Adam holds as ``exp_avg_sq``.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64, in chunks; rounded once.

    Raises:
        ValueError: If counts or shapes differ, anything is not floating point or not finite, or a
            weight or an importance is negative.

    Example:
        >>> models = [torch.tensor([0.0, 2.0]), torch.tensor([1.0, 4.0])]
        >>> importance(models, [1, 1], [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])])
        tensor([0.7500, 3.0000])
    """
    check_models(models, weights)
    check_shares(weights)
    check_alike("importances", importances, models)
    for index, tensor in enumerate(importances):
        if bool((tensor < 0).any()):
            raise ValueError(f"importances[{index}] holds negative values: give squared gradients")
    device = models[0].device
    size = chunk_size(device)
    parts = [t.detach().to(device).reshape(-1).split(size) for t in (*models, *importances)]
    merged = torch.empty(models[0].shape, dtype=models[0].dtype, device=device)
    for out, *chunks in zip(merged.view(-1).split(size), *parts, strict=True):
        values, shares = chunks[: len(models)], chunks[len(models) :]
        out.copy_(_weighted_average(values, shares, weights))
    return rounded(merged, models[0])


def subspace(
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
        >>> subspace(models, [1, 1], seen, ridge=0.0)
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
    # solved for the distance from W_mix, which is well conditioned where the models are alike
    distances = [weight - mixed for weight in own]
    return rounded(mixed + _solve(distances, grams, ridge), models[0])


def _weighted_average(
    values: Sequence[Tensor], importances: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    shares = [weight * f.double() for f, weight in zip(importances, weights, strict=True)]
    total = torch.stack(shares).sum(0)
    merged = torch.zeros_like(total)
    for value, share, weight in zip(values, shares, weights, strict=True):
        merged += value * torch.where(total > 0, share / total, weight / sum(weights))
    return merged


def _check_moments(moments: Sequence[Tensor], models: Sequence[Tensor]) -> None:
    if models[0].ndim != 2:
        raise ValueError(
            f"models[0] has the shape {tuple(models[0].shape)}: subspace merging is for matrices, "
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


def _solve(distances: Sequence[Tensor], grams: Sequence[Tensor], ridge: float) -> Tensor:
    """Return (Σ DᵢGᵢ)(Σ Gᵢ + r·I)⁻¹ for the distances D from the mean; rows first if diagonal."""
    total = torch.stack(list(grams)).sum(0)
    diagonal = total if total.ndim == 1 else total.diagonal()
    if distances[0].numel() == 0 or (ridge > 0 and bool((diagonal == 0).all())):
        return torch.zeros_like(distances[0])
    level = diagonal + ridge * diagonal.mean()
    if total.ndim == 1:
        if bool((level <= 0).any()):
            raise _singular(ridge)
        pulls = [d * counts[:, None] for d, counts in zip(distances, grams, strict=True)]
        return torch.stack(pulls).sum(0) / level[:, None]
    pulled = torch.stack([d @ gram for d, gram in zip(distances, grams, strict=True)]).sum(0)
    total.diagonal().copy_(level)
    factor, failed = torch.linalg.cholesky_ex(total)
    # what a pivot leaves of its diagonal entry is rounding error alone where columns are dependent
    least = 10 * len(level) * torch.finfo(level.dtype).eps * level
    if bool(failed) or bool((factor.diagonal().square() <= least).any()):
        raise _singular(ridge)
    return torch.cholesky_solve(pulled.T, factor).T


def _singular(ridge: float) -> ValueError:
    return ValueError(
        f"the moments leave directions without any input, which ridge={ridge!r} cannot settle: "
        "use a larger one, such as 0.01"
    )
