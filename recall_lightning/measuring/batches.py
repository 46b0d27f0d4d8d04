"""Batches of any shape: how many samples they hold, and parts of them.

A batch is a tensor, or any nesting of tuples, lists, mappings (a tokenizer's ``BatchEncoding``
too) and dataclasses of tensors. Lists of other things with one entry a sample (texts) are parted
like tensors; everything else is carried along as it is.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def tensors_of(batch: Any) -> list[Tensor]:
    """Return every tensor in a batch, in order."""
    found: list[Tensor] = []
    apply_to_collection(batch, Tensor, found.append)
    return found


def entries_of(batch: Any) -> Mapping[str, Any] | None:
    """Return what a batch holds by name: a mapping, a dataclass's fields, those of a named tuple.

    Example:
        >>> from collections import namedtuple
        >>> entries_of(namedtuple("Pair", "x y")(1, 2)), entries_of((1, 2))
        ({'x': 1, 'y': 2}, None)
    """
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return dict(zip(batch._fields, batch, strict=True)) if hasattr(batch, "_fields") else None


def sample_axis(batch: Any) -> int:
    """Return the axis that counts samples: 0, or 1 for sequence-first batches.

    It is 0 if most of the tensors agree in their first size, otherwise 1 if most agree in the
    second. Tensors of another size there, such as class weights, belong to no sample.

    Raises:
        ValueError: If the batch holds no tensor with a first axis, or they agree in neither.

    Example:
        >>> sample_axis((torch.zeros(7, 4), torch.zeros(5, 4)))
        1
    """
    return _axis_and_size(batch)[0]


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch.

    Example:
        >>> batch_size({"input_ids": torch.zeros(3, 8), "labels": torch.zeros(3)})
        3
    """
    return _axis_and_size(batch)[1]


def _axis_and_size(batch: Any) -> tuple[int, int]:
    tensors = [tensor for tensor in tensors_of(batch) if tensor.dim() > 0]
    if not tensors:
        raise ValueError(
            f"a batch of type {type(batch).__name__} holds no tensor with samples: give it one"
        )
    for axis in (0, 1):
        sizes = Counter(tensor.shape[axis] for tensor in tensors if tensor.dim() > axis)
        if sizes and 2 * sizes.most_common(1)[0][1] > len(tensors):
            return axis, sizes.most_common(1)[0][0]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:4])
    raise ValueError(
        f"the batch's tensors agree on no number of samples: their shapes are {shapes}"
    )


def select_samples(batch: Any, indices: Tensor) -> Any:
    """Return the same kind of batch with the samples at ``indices`` only.

    Args:
        batch: The batch.
        indices: Positions of the samples, (n,) int64.

    Example:
        >>> select_samples((torch.arange(4), ["a", "b", "c", "d"]), torch.tensor([1, 3]))
        (tensor([1, 3]), ['b', 'd'])
    """
    axis, size = _axis_and_size(batch)

    def part(item: Any) -> Any:
        if isinstance(item, Tensor):
            counts = item.dim() > axis and item.shape[axis] == size
            return item.index_select(axis, indices.to(item.device)) if counts else item
        if len(item) == size and not tensors_of(item):
            return type(item)(item[int(index)] for index in indices)
        entries = [apply_to_collection(entry, (Tensor, list, tuple), part) for entry in item]
        return type(item)(*entries) if hasattr(item, "_fields") else type(item)(entries)

    return apply_to_collection(batch, (Tensor, list, tuple), part)


def concatenate(batches: Sequence[Any], most: int) -> list[Any]:
    """Join batches where their tensors fit together, into batches of at most ``most`` samples.

    Batches padded to different lengths, or of different structure, stay apart.

    Args:
        batches: The batches, each of at most ``most`` samples.
        most: How many samples fit into one.

    Example:
        >>> [len(batch) for batch in concatenate([torch.ones(1, 2), torch.zeros(2, 2)], most=4)]
        [3]
    """
    joined: list[Any] = []
    for batch in batches:
        if (
            joined
            and batch_size(joined[-1]) + batch_size(batch) <= most
            and _fit(joined[-1], batch)
        ):
            axis, tail = sample_axis(batch), iter(tensors_of(batch))
            joined[-1] = apply_to_collection(
                joined[-1],
                Tensor,
                lambda head, axis=axis, tail=tail: torch.cat([head, next(tail)], axis),
            )
        else:
            joined.append(batch)
    return joined


def _fit(one: Any, other: Any) -> bool:
    """Tell whether two batches hold samples' tensors alone, pairwise of one shape but for these."""
    if not (_holds_only_tensors(one) and _holds_only_tensors(other)):
        return False
    shapes, others = _sample_shapes(one), _sample_shapes(other)
    return sample_axis(one) == sample_axis(other) and shapes == others and None not in shapes


def _sample_shapes(batch: Any) -> list[tuple[int, ...] | None]:
    """The tensors' shapes without the samples' axis; None for one that does not count samples."""
    axis, size = _axis_and_size(batch)
    return [
        (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
        if tensor.dim() > axis and tensor.shape[axis] == size
        else None
        for tensor in tensors_of(batch)
    ]


def _holds_only_tensors(batch: Any) -> bool:
    entries = entries_of(batch)
    if entries is not None:
        return all(_holds_only_tensors(value) for value in entries.values())
    if isinstance(batch, (tuple, list)):
        return all(_holds_only_tensors(value) for value in batch)
    return isinstance(batch, Tensor)


def only_tensors(batch: Any) -> list[Tensor] | None:
    """Return a batch's tensors if it holds nothing else, so that :func:`rebuild` can undo it."""
    return tensors_of(batch) if _holds_only_tensors(batch) else None


def detached(batch: Any) -> Any:
    """Copy a batch, so that nobody who changes the original changes it.

    Its containers are copied as well; of an object of another kind, the object without its parts.
    """
    clones: dict[int, Tensor] = {}  # a tensor that stands in several places stays one

    def clone(tensor: Tensor) -> Tensor:
        if id(tensor) not in clones:
            clones[id(tensor)] = tensor.detach().clone()
        return clones[id(tensor)]

    copied = apply_to_collection(batch, Tensor, clone)
    return copy.copy(batch) if copied is batch else copied


def rebuild(like: Any, tensors: Sequence[Tensor]) -> Any:
    """Put tensors back into a batch of the same structure as ``like``.

    Raises:
        ValueError: If ``like`` holds another number of tensors.

    Example:
        >>> rebuild({"x": torch.zeros(8), "y": torch.zeros(8)}, [torch.ones(1), torch.ones(1)])
        {'x': tensor([1.]), 'y': tensor([1.])}
    """
    if len(tensors_of(like)) != len(tensors):
        raise ValueError(
            f"{len(tensors)} tensors must be {len(tensors_of(like))}, as many as the batch has"
        )
    values = iter(tensors)
    return apply_to_collection(like, Tensor, lambda _: next(values))
