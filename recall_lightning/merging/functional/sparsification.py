"""Which entries of a task vector are kept: the largest, the middle ones, or random ones."""

import hashlib
from typing import Literal

import torch
from torch import Tensor

Rescale = Literal["density", "l1", "none"]


def check_density(density: float) -> None:
    """Check the share of entries to keep.

    Raises:
        ValueError: If it lies outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density!r} must lie in (0, 1]: it is the share that is kept")


def magnitude_mask(delta: Tensor, density: float, gamma: float = 0.0) -> Tensor:
    """Mark what is left without the ``gamma`` largest and the smallest magnitudes.

    Of n entries max(1, int(density · n)) are kept, never none, so that a bias or a scalar is not
    silently lost (mergekit refuses it, PEFT zeroes it). int(gamma · n) are cut at the top. Among
    equal magnitudes the first, row by row, counts as the larger, on every device.

    Args:
        delta: Any shape; finite.
        density: The share to keep, in (0, 1].
        gamma: The share to cut at the top, in [0, 1), together with ``density`` at most 1.

    Returns:
        A mask of the shape of ``delta``, on its device.

    Raises:
        ValueError: If a share is outside its range.

    Example:
        >>> magnitude_mask(torch.tensor([1.0, -4.0, 3.0, 0.0]), density=0.5, gamma=0.25)
        tensor([ True, False,  True, False])
    """
    check_density(density)
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma={gamma!r} must lie in [0, 1): it is the share cut at the top")
    if density + gamma > 1:
        raise ValueError(f"density={density!r} and gamma={gamma!r} must not exceed 1 together")
    entries = delta.numel()
    kept = min(entries, max(1, int(density * entries)))
    cut = int(gamma * entries)
    magnitudes = delta.abs().reshape(-1)
    mask = _largest(magnitudes, cut + kept)
    if cut:
        mask &= ~_largest(magnitudes, cut)
    return mask.view(delta.shape)


def random_mask(shape: torch.Size, density: float, seed: int, name: str, model_key: str) -> Tensor:
    """Mark every entry with probability ``density``, by a draw of this parameter's own.

    The generator is keyed by a hash of (seed, parameter name, model), and always the CPU's: the
    mask depends neither on the device nor on what else is merged, in which order or from which
    file.

    Returns:
        A mask of that shape, on the CPU; possibly of nothing where the tensor is small.

    Raises:
        ValueError: If ``density`` is outside (0, 1].

    Example:
        >>> random_mask(torch.Size([6]), 0.5, seed=0, name="head.bias", model_key="0")
        tensor([ True,  True, False,  True, False, False])
    """
    check_density(density)
    key = "\0".join((str(seed), name, model_key)).encode()
    digest = hashlib.blake2b(key, digest_size=4).digest()  # the CPU's generator takes 32 bits
    generator = torch.Generator().manual_seed(int.from_bytes(digest))
    return torch.rand(shape, generator=generator, dtype=torch.float32) < density


def rescaled(pruned: Tensor, delta: Tensor, density: float, rescale: Rescale) -> Tensor:
    """Make up for what was dropped from ``delta``.

    Args:
        pruned: ``delta`` with entries set to 0.
        delta: The whole task vector.
        density: The probability with which an entry was kept.
        rescale: ``"density"``: divided by it, which leaves the expectation as it was. ``"l1"``:
            scaled to the L1 norm of ``delta``; all zeros stay so. ``"none"``: left alone.

    Example:
        >>> rescaled(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]), 0.5, "l1")
        tensor([0., 3.])
    """
    if rescale == "density":
        return pruned / density
    if rescale == "l1":
        left = float(torch.linalg.vector_norm(pruned, 1, dtype=torch.float64))
        whole = float(torch.linalg.vector_norm(delta, 1, dtype=torch.float64))
        return pruned * (whole / left) if left > 0 else pruned
    return pruned


def _largest(magnitudes: Tensor, count: int) -> Tensor:
    """Mark exactly ``count`` entries of a vector, among equal ones the first."""
    if count == magnitudes.numel():
        return torch.ones_like(magnitudes, dtype=torch.bool)
    threshold = magnitudes.kthvalue(magnitudes.numel() - count + 1).values  # no sort: linear time
    mask = magnitudes > threshold
    at_threshold = (magnitudes == threshold).nonzero().flatten()
    mask[at_threshold[: count - int(mask.sum())]] = True
    return mask
