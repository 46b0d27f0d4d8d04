"""Weighted sums of low-rank updates ΔW = scale · B A, brought back to few ranks by thin algebra."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recall_lightning.weights.finite import all_finite


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """A low-rank update of a weight: ΔW = scale · b @ a (LoRA, arXiv 2106.09685, section 4.1).

    Attributes:
        a: (rank, in).
        b: (out, rank).
        scale: The factor before the product; for LoRA alpha / rank, for rsLoRA alpha / √rank.

    Raises:
        ValueError: If the two are no matrices of one rank, or the scale is not finite.

    Example:
        >>> LoraFactors(torch.ones(1, 3), torch.ones(2, 1), scale=0.5).rank
        1
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(
                f"A has the shape {tuple(self.a.shape)} and B {tuple(self.b.shape)}: expected "
                "(rank, in) and (out, rank)"
            )
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale of a low-rank update must be finite, not {self.scale}")

    @property
    def rank(self) -> int:
        """Number of rows of A and of columns of B."""
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class MergedLora(LoraFactors):
    """The factors of a merged update, and what bringing it back to their rank has cost.

    Attributes:
        discarded_energy: Part of ‖ΔW‖² (Frobenius) that the truncation lost, in [0, 1].
    """

    discarded_energy: float = 0.0


def merge_lora(
    factors: Sequence[LoraFactors],
    weights: Sequence[float],
    rank: int | None = None,
    like: LoraFactors | None = None,
) -> MergedLora:
    """Return factors of Σ wᵢ ΔWᵢ: exactly if the rank allows it, else of its best approximation.

    The factors are stacked, both stacks reduced by QR, and the small core between the triangles
    decomposed: its truncated SVD is that of the sum (Eckart and Young 1936), and no (out, in)
    matrix is formed. Where the stacks are much wider than the rank, Gram matrices take the place
    of the QR, which is exact to 1e-6 of norms: those of the stacks if the sum does not nearly
    cancel, or that of the matrix itself if it is no wider than they are. Computed in float64: the
    matrices are thin, and updates may be tiny.

    ΔW = B A leaves an invertible matrix between B and A free. Without ``like`` the singular values
    are split evenly, with zeros where the sum has fewer ranks than asked for. With ``like`` the
    factors are those of the same product that continue ``like``, see :func:`_continue_factors`;
    merging equal factors returns them bit for bit.

    Args:
        factors: Of any ranks, all with the same in and out.
        weights: One a factor, of any sign; a factor of weight 0 is not looked at.
        rank: Of the result. None takes that of ``like``, or else the least that is always exact.
        like: Factors under training, whose rank, scale, device and choice of basis are kept.

    Returns:
        Factors in float32, in float64 where an input is, on the device of ``like`` or of the first
        factor; their scale is that of ``like``, or else 1.

    Raises:
        ValueError: If lengths, shapes, rank, weights or scale do not fit, values are not finite, or
            the decomposition does not converge.

    Example:
        >>> one = LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0], [0.0]]))
        >>> two = LoraFactors(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [2.0]]))
        >>> merged = merge_lora([one, two], [0.5, 0.5], rank=1)
        >>> (merged.b @ merged.a).round(decimals=4), round(merged.discarded_energy, 4)
        (tensor([[2., 0.],
                [0., 0.]]), 0.2)
    """
    rank = _check(factors, weights, rank, like)
    members = [*factors, like] if like else list(factors)
    dtype = torch.float64 if any(f.b.dtype == torch.float64 for f in members) else torch.float32
    device = (like or factors[0]).a.device
    used = [(f, w) for f, w in zip(factors, weights, strict=True) if w != 0]
    if like and used and _all_equal(like, used):
        return MergedLora(like.a.detach().to(dtype), like.b.detach().to(dtype), like.scale)

    cast = [(_to(f, device), w) for f, w in used or [(factors[0], 0.0)]]
    try:
        merged = _merged(cast, rank, _to(like, torch.device("cpu")) if like else None)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"the low-rank updates cannot be decomposed: {error}") from error
    a, b = merged.a.to(device, dtype), merged.b.to(device, dtype)
    return MergedLora(a, b, merged.scale, merged.discarded_energy)


def _merged(
    cast: Sequence[tuple[LoraFactors, float]], rank: int, live: LoraFactors | None
) -> MergedLora:
    u, s, v, discarded = _svd_of_sum(cast, rank)
    if live is None:
        return MergedLora(*_balanced_factors(u, s, v, rank), 1.0, discarded)
    alive = s > 0
    largest_b = max(
        abs(f.scale / live.scale) * float(torch.linalg.norm(f.b))
        for f in [live, *(f for f, _ in cast)]
    )
    a, b = _continue_factors(live, u[:, alive], s[alive], v[:, alive], largest_b)
    return MergedLora(a, b, live.scale, discarded)


def _check(
    factors: Sequence[LoraFactors],
    weights: Sequence[float],
    rank: int | None,
    like: LoraFactors | None,
) -> int:
    """Check what :func:`merge_lora` got and return the rank of its result."""
    if not factors or len(factors) != len(weights):
        raise ValueError(
            f"the low-rank updates need a weight each: there are {len(factors)} and {len(weights)}"
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise ValueError(f"the weight of a low-rank update must be finite, not {weight}")
    members = [*factors, like] if like else list(factors)
    ends = {(f.b.shape[0], f.a.shape[1]) for f in members}
    if len(ends) > 1:
        raise ValueError(
            f"the low-rank updates are of weights of different shapes, and must be of one: "
            f"{sorted(ends)}"
        )
    if not all(all_finite(t) for f in members for t in (f.a, f.b)):
        raise ValueError("a low-rank update holds NaN or infinite values, and must be finite")
    if like and like.scale == 0:
        raise ValueError("the live update has the scale 0: no update can be written in its factors")
    if rank is None:
        rank = like.rank if like else min(sum(f.rank for f in factors), *ends.pop())
    if rank < 1 or (like and rank != like.rank):
        raise ValueError(f"the rank must be {like.rank if like else 'at least 1'}, not {rank}")
    return rank


def _to(factors: LoraFactors, device: torch.device) -> LoraFactors:
    a, b = (t.detach().to(device=device, dtype=torch.float64) for t in (factors.a, factors.b))
    return LoraFactors(a, b, factors.scale)


def _all_equal(like: LoraFactors, used: Sequence[tuple[LoraFactors, float]]) -> bool:
    """Tell whether a mean is taken of updates that are all ``like`` itself."""
    return math.isclose(sum(w for _, w in used), 1.0, rel_tol=1e-12) and all(
        f.scale == like.scale
        and f.rank == like.rank
        and torch.equal(f.a.to(like.a.device), like.a)
        and torch.equal(f.b.to(like.b.device), like.b)
        for f, _ in used
    )


def _svd_of_sum(
    used: Sequence[tuple[LoraFactors, float]], rank: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return U (out, n), σ (n), V (in, n) of Σ wᵢ ΔWᵢ, n at most the rank, and what is left out.

    That is the part of ‖Σ wᵢ ΔWᵢ‖² (Frobenius); what is rounding noise in σ becomes 0. Whatever the
    factors' device, they come on the CPU: a GPU takes milliseconds to decompose what is small.
    """
    b = torch.cat([w * f.scale * f.b for f, w in used], dim=1)
    a = torch.cat([f.a for f, _ in used])
    sizes = [abs(w * f.scale) * torch.linalg.norm(f.a) * torch.linalg.norm(f.b) for f, w in used]
    noise = 8 * torch.finfo(a.dtype).eps * float(sum(sizes))
    found = None
    if len(a) > _WIDE * rank and len(a) >= min(len(b), a.shape[1]):
        found = _leading_of_matrix((b @ a).cpu(), rank)
    elif len(a) > _WIDE * rank:
        found = _leading(b, a, rank)
        found = found if float(found[1][:1].sum()) > _DROWNED * float(sum(sizes)) else None
    if found is not None:
        u, s, v, rest = found
    else:
        q_b, r_b = torch.linalg.qr(b.cpu())
        q_a, r_a = torch.linalg.qr(a.T.cpu())
        u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        s = torch.where(s > noise, s, 0)
        u, v, rest = q_b @ u[:, :rank], q_a @ vh[:rank].T, float(s[rank:].square().sum())
    s = torch.where(s > noise, s, 0)[:rank]
    kept = float(s.square().sum())
    return u, s, v, rest / (kept + rest) if rest > noise**2 else 0.0


def _leading(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the leading U, σ, V of b @ a, and the sum of all other σ², from Gram matrices.

    These are (n, n) with n the width of the stacks, and all that is decomposed. Directions in which
    a stack is shorter than 1e-6 of its longest are rounding noise of its Gram matrix and left out,
    after each column of b and its row of a have been given one length.
    """
    lengths = torch.linalg.norm(b, dim=0), torch.linalg.norm(a, dim=1)
    ratio = (lengths[1] / lengths[0]).sqrt()
    ratio = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1)
    b, a = b * ratio, a / ratio[:, None]
    (half_b, whitened_b), (half_a, whitened_a) = (
        _halves(gram.cpu()) for gram in (b.T @ b, a @ a.T)
    )
    u, s, vh = torch.linalg.svd(half_b.T @ half_a, full_matrices=False)
    left, right = (whitened_b @ u[:, :rank]).to(b), (whitened_a @ vh[:rank].T).to(a)
    return (b @ left).cpu(), s[:rank], (a.T @ right).cpu(), float(s[rank:].square().sum())


def _leading_of_matrix(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the leading U, σ, V of a matrix, and the sum of all other σ², from its Gram matrix.

    The σ that are less than 1e-6 of the largest are rounding noise there, and left out.
    """
    if len(matrix) < matrix.shape[1]:
        v, s, u, rest = _leading_of_matrix(matrix.T, rank)
        return u, s, v, rest
    squares, directions = torch.linalg.eigh(matrix.T @ matrix)
    seen = squares > _NOISE * squares[-1]
    squares, directions = squares[seen].flip(0), directions[:, seen].flip(1)
    s, v = squares[:rank].sqrt(), directions[:, :rank]
    return matrix @ (v / s), s, v, float(squares[rank:].sum())


def _halves(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return H and P, (n, m), with H Hᵀ = G and PᵀGP = 1 where G is no noise."""
    sizes, directions = torch.linalg.eigh(gram)
    seen = sizes > _NOISE * sizes[-1]
    root, directions = sizes[seen].sqrt(), directions[:, seen]
    return directions * root, directions / root


_WIDE = 4  # times the rank: stacks beyond that are reduced by their Gram matrices
_DROWNED = 1e-4  # of the stacks' norms: a sum that is less has nearly cancelled
_NOISE = 1e-12  # of the largest eigenvalue of a Gram matrix in float64


def _balanced_factors(u: Tensor, s: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split σ evenly between A and B; ranks that the sum does not have are zero."""
    root = s.sqrt()
    a, b = root[:, None] * v.T, u * root
    missing = rank - len(s)
    return (
        torch.nn.functional.pad(a, (0, 0, 0, missing)),
        torch.nn.functional.pad(b, (0, missing)),
    )


def _continue_factors(
    live: LoraFactors, u: Tensor, s: Tensor, v: Tensor, largest_b: float
) -> tuple[Tensor, Tensor]:
    """Return A, B with scale · B A = U diag(σ) Vᵀ that stay close to the live A₀, B₀.

    An optimizer's moments belong to the live factors' basis, and a direction whose row of A and
    column of B are both zero gets no gradient any more. So A₀ is kept but for the turn that lets
    its rows span V (:func:`_turn_rows`), and B is the nearest to B₀ that has the product right:
    B = B₀ + (M / scale − B₀ A) A⁺, which for A = A₀ and M = scale · B₀ A₀ is B₀ itself. As M's rows
    lie in those of A, the product is exact.

    Args:
        live: The factors to continue.
        u: (out, k) left singular vectors of the update M, k at most the live rank.
        s: (k) singular values, all positive.
        v: (in, k) right singular vectors.
        largest_b: A bound on the columns of B.
    """
    a = _turn_rows(live.a, s / abs(live.scale), v, largest_b)
    q, r = torch.linalg.qr(a.T)
    wrong = (u * (s / live.scale)) @ (v.T @ q) - live.b @ r.T
    return a, live.b + wrong @ torch.linalg.pinv(r.T)


def _turn_rows(a: Tensor, s: Tensor, v: Tensor, largest_b: float) -> Tensor:
    """Turn the rows of A until they span V, and change them no further.

    The SVD of A V pairs k directions qᵢ of the rank with k directions of V, by how long A is along
    them. What a row qᵢᵀA has outside of V and of the rows of A that are left alone is given up, and
    its length added along its direction of V: every row of A in that basis keeps its length, so
    that repeated merging shrinks nothing. Where A is so short that B would outgrow ``largest_b``,
    A is made longer. Rows that span V already are not changed.

    Args:
        a: (rank, in).
        s: (k) singular values of B A to come.
        v: (in, k) orthonormal, k at most the rank.
        largest_b: The norm that a column of B may have.
    """
    q, size, z = torch.linalg.svd(a @ v)
    turned, untouched = q[:, : len(s)], q[:, len(s) :]
    along = z @ v.T
    rows = turned.T @ a
    noise = torch.finfo(a.dtype).eps * max(a.shape) * torch.linalg.norm(a)
    _, strength, basis = torch.linalg.svd(untouched.T @ a, full_matrices=False)
    kept = basis[strength > noise]
    lost = rows - size[:, None] * along - (rows @ kept.T) @ kept
    length = torch.hypot(size, torch.linalg.norm(lost, dim=1))
    length = torch.maximum(length, torch.linalg.norm(s * z, dim=1) / largest_b)
    return a + turned @ ((length - size)[:, None] * along - lost)
