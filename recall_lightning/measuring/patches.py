"""What convolutions multiply: the patches that a kernel sees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

Convolution = nn.Conv1d | nn.Conv2d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d


def patches(child: Convolution, images: Tensor, group: int = 0) -> Tensor:
    """Return the patches that a convolution multiplies.

    Args:
        child: The module.
        images: What it is given, with or without an axis of samples.
        group: Of its groups of channels, the one whose patches are wanted.

    Returns:
        (patches, channels of a group · kernel).

    Example:
        >>> import torch
        >>> patches(nn.Conv1d(1, 1, 2), torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 2.],
                [2., 3.]])
    """
    spatial = len(child.kernel_size)
    images = images if images.dim() == spatial + 2 else images[None]
    channels = child.in_channels // child.groups
    images = images[:, group * channels : (group + 1) * channels]
    if child.padding_mode != "zeros" or isinstance(child.padding, str):
        mode = "constant" if child.padding_mode == "zeros" else child.padding_mode
        images = functional.pad(images, child._reversed_padding_repeated_twice, mode=mode)
        padding: tuple[int, ...] = (0,) * spatial
    else:
        padding = child.padding
    return _unfolded(images, child.kernel_size, child.dilation, padding, child.stride)


def spread(
    child: TransposedConvolution, images: Tensor, output_size: Sequence[int] | None = None
) -> Tensor:
    """Return what an ordinary convolution is given that does what a transposed one does.

    That is the images with zeros between their entries and around them.

    Args:
        child: The module, of one group.
        images: What it is given, with or without an axis of samples.
        output_size: What else it is given.

    Returns:
        (samples, channels, spread size …).

    Example:
        >>> import torch
        >>> layer = nn.ConvTranspose1d(1, 1, 2, stride=2)
        >>> spread(layer, torch.tensor([[1.0, 2.0]]))
        tensor([[[0., 1., 0., 2., 0.]]])
    """
    spatial = len(child.kernel_size)
    images = images if images.dim() == spatial + 2 else images[None]
    more = child._output_padding(
        images,
        None if output_size is None else list(output_size),
        list(child.stride),
        list(child.padding),  # type: ignore[arg-type]
        list(child.kernel_size),
        spatial,
        list(child.dilation),
    )
    sizes = [(n - 1) * step + 1 for n, step in zip(images.shape[2:], child.stride, strict=True)]
    wide = images.new_zeros(*images.shape[:2], *sizes)
    places = wide
    for axis, step in enumerate(child.stride, start=2):
        places = places[(slice(None),) * axis + (slice(None, None, step),)]
    places.copy_(images)
    around: list[int] = []
    for axis in reversed(range(spatial)):
        reach = child.dilation[axis] * (child.kernel_size[axis] - 1)
        left = reach - int(child.padding[axis])
        around += [left, left + more[axis]]
    return functional.pad(wide, around)


def spread_patches(child: TransposedConvolution, wide: Tensor) -> Tensor:
    """Return the patches that a transposed convolution multiplies, of what :func:`spread` gave.

    Returns:
        (patches, channels · kernel).
    """
    spatial = len(child.kernel_size)
    rows = _unfolded(wide, child.kernel_size, child.dilation, (0,) * spatial, (1,) * spatial)
    turned = rows.unflatten(1, (child.in_channels, *child.kernel_size))
    return turned.flip(list(range(2, 2 + spatial))).flatten(1)


def _unfolded(images: Tensor, *sizes: tuple[int, ...]) -> Tensor:
    """Unfold images, or sequences, by kernel, dilation, padding and stride."""
    if images.dim() == 3:  # unfold knows images only
        images = images[:, :, None]
        first = ((1,), (1,), (0,), (1,))
        sizes = tuple((*one, *size) for one, size in zip(first, sizes, strict=True))
    return functional.unfold(images, *sizes).transpose(1, 2).flatten(0, 1)
