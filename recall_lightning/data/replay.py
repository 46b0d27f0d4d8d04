"""Which training samples of earlier tasks are stored for experience replay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from recall_lightning.data.sampling import mix_seed
from recall_lightning.measuring.isolation import isolated_rng

_DEFAULT_CAPACITY = 500


class StoredSamples(Subset[Any]):
    """The training samples of earlier tasks that a replay buffer holds.

    They are read from the tasks' datasets, so nothing is copied; :attr:`nbytes` is what a copy
    would take.
    """

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors and arrays in all samples; a Python number counts as 8.

        Raises:
            TypeError: If a sample holds something else, such as an image that is not yet a tensor.
        """
        with isolated_rng():  # a dataset that augments at random reads the global state
            return sum(_nbytes(self[index]) for index in range(len(self)))


@dataclass(frozen=True)
class ReplayBuffer:
    """A limited number of training samples of earlier tasks, for experience replay.

    From a stream's second task on, ``batch_size`` samples drawn from the buffer join every training
    batch (Chaudhry et al. 2019, arXiv 1902.10486). What the buffer holds depends on the stream's
    seed and the number of finished tasks alone; a buffer is updated by the samples of a task as
    they go by, so it never needs one again that it did not keep.

    Policies:

    - ``"reservoir"``: a uniform sample of all samples so far (Vitter 1985, algorithm R).
    - ``"class_balanced"``: as many samples of every class seen so far as of any other, drawn
      uniformly within the class. A class that has fewer keeps all of them, and the others share
      what it leaves. (The equal shares are those of GDumb, Prabhu et al. 2020.)

    Example::

        >>> from torch.utils.data import TensorDataset
        >>> first, second = TensorDataset(torch.zeros(60, 3)), TensorDataset(torch.ones(20, 3))
        >>> stored = ReplayBuffer(capacity=8).after([first, second], seed=0)
        >>> len(stored), stored.nbytes
        (8, 96)

    Args:
        capacity: Stored samples in all: 500, where ``per_task`` is not given.
        policy: Which samples are kept.
        batch_size: Stored samples in a training batch, at most as many as there are. Defaults to
            the stream's batch size.
        per_task: Stored samples of each earlier task, in place of ``capacity``: the buffer then
            grows with the tasks.

    Raises:
        MisconfigurationException: If a size is not a positive integer, ``capacity`` and
            ``per_task`` are both given, or the policy is unknown.
    """

    capacity: int | None = None
    policy: Literal["reservoir", "class_balanced"] = "reservoir"
    batch_size: int | None = None
    per_task: int | None = None

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_size", "per_task"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size is True or size < 1):
                raise MisconfigurationException(
                    f"ReplayBuffer: {name}={size!r} must be an integer of 1 or more."
                )
        if self.policy not in ("reservoir", "class_balanced"):
            raise MisconfigurationException(
                f"ReplayBuffer: policy={self.policy!r} is unknown; choose 'reservoir' or"
                " 'class_balanced'."
            )
        if self.capacity is not None and self.per_task is not None:
            raise MisconfigurationException(
                f"ReplayBuffer: capacity={self.capacity}, the stored samples in all, and per_task="
                f"{self.per_task}, those of each task, exclude each other: give one of them."
            )
        if self.capacity is None and self.per_task is None:
            object.__setattr__(self, "capacity", _DEFAULT_CAPACITY)

    def after(self, datasets: Sequence[Dataset[Any]], seed: int) -> StoredSamples:
        """What is stored after training on some tasks.

        Args:
            datasets: The tasks' training sets, map-style, in the order of training.
            seed: Decides which samples are kept; the same for all tasks of a run.

        Raises:
            MisconfigurationException: If the policy is ``"class_balanced"`` and a sample has no
                class label, or there are more classes than places.
        """
        kept: list[int] = []
        first = 0
        for task, dataset in enumerate(datasets if self.per_task is not None else []):
            own = self._keep([dataset], self.per_task, mix_seed(seed, task))
            kept += [first + index for index in own]
            first += len(dataset)  # type: ignore[arg-type]
        if self.capacity is not None:
            kept = self._keep(datasets, self.capacity, seed)
        return StoredSamples(ConcatDataset(datasets), kept)

    def _keep(self, datasets: Sequence[Dataset[Any]], capacity: int | None, seed: int) -> list[int]:
        assert capacity is not None
        if self.policy == "reservoir":
            sizes = [len(dataset) for dataset in datasets]  # type: ignore[arg-type]
            return reservoir(sizes, capacity, seed)
        return class_balanced([class_labels(dataset) for dataset in datasets], capacity, seed)


def reservoir(sizes: Sequence[int], capacity: int, seed: int) -> list[int]:
    """Choose samples uniformly in one pass over them.

    Algorithm R (Vitter 1985): the first ``capacity`` samples are kept; the i-th one after them
    (counted from 1, over all tasks) takes a random place among i and is kept if that is one of
    ``capacity``, in place of the sample that was there.

    Args:
        sizes: Samples of each task.
        capacity: How many samples are kept.
        seed: Decides which.

    Returns:
        Indices of the samples that are kept, counted over all tasks; for fewer tasks of the same
        sizes the choice is that of the pass when it had come so far.

    Example::

        >>> reservoir([2, 1], capacity=5, seed=0)
        [0, 1, 2]
        >>> before, after = set(reservoir([20], 5, seed=0)), set(reservoir([20, 5], 5, seed=0))
        >>> after <= before | set(range(20, 25))
        True
    """
    kept: list[int] = []
    seen = 0
    for task, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(mix_seed(seed, task))
        drawn = torch.rand(size, dtype=torch.float64, generator=generator)
        places = (drawn * torch.arange(seen + 1, seen + size + 1)).long().tolist()
        for sample, place in enumerate(places, start=seen):
            if len(kept) < capacity:
                kept.append(sample)
            elif place < capacity:
                kept[place] = sample
        seen += size
    return kept


def class_balanced(labels: Sequence[Sequence[int]], capacity: int, seed: int) -> list[int]:
    """Choose the same number of samples of every class, uniformly within the class.

    Every sample draws a random key when it is seen, and of each class the samples with the smallest
    keys are kept: at most as many as leave room for as many of every other class.

    Args:
        labels: The class of each sample, task by task.
        capacity: How many samples are kept at most. What does not part evenly stays empty.
        seed: Decides which.

    Returns:
        Indices of the samples that are kept, counted over all tasks. A sample that was not kept
        after fewer tasks is not kept after more.

    Raises:
        MisconfigurationException: If there are more classes than places.

    Example::

        >>> kept = class_balanced([[0] * 50 + [1] * 2, [2] * 10], capacity=11, seed=0)
        >>> [sum(first <= index < last for index in kept) for first, last in ((0, 50), (50, 62))]
        [4, 6]
    """
    flat = [label for task in labels for label in task]
    counts = Counter(flat)
    if capacity < len(counts):
        raise MisconfigurationException(
            f"ReplayBuffer: {capacity} places do not hold a sample of each of {len(counts)}"
            " classes. Give it more, or policy='reservoir'."
        )
    share = capacity  # the largest one that fits; it only falls as classes and samples come
    while sum(min(count, share) for count in counts.values()) > capacity:
        share -= 1
    keys = torch.cat(
        [
            torch.rand(len(task), generator=torch.Generator().manual_seed(mix_seed(seed, index)))
            for index, task in enumerate(labels)
        ]
    )
    left = Counter(dict.fromkeys(counts, share))
    kept = []
    for sample in keys.argsort(stable=True).tolist():
        if left[flat[sample]] > 0:
            left[flat[sample]] -= 1
            kept.append(sample)
    return sorted(kept)


def class_labels(dataset: Dataset[Any]) -> list[int]:
    """The class of every sample of a dataset.

    Args:
        dataset: Samples ``(inputs, label)``, or mappings with ``labels``, the label being an
            integer or a tensor of one element.

    Raises:
        MisconfigurationException: If a sample has another form.

    Example::

        >>> class_labels([(torch.zeros(4), torch.tensor(3)), {"labels": 1}])
        [3, 1]
    """
    with isolated_rng():  # a dataset that augments at random reads the global state
        return [_label(dataset[index]) for index in range(len(dataset))]  # type: ignore[arg-type]


def _label(sample: Any) -> int:
    label = None
    if isinstance(sample, Mapping):
        label = sample.get("labels")
    elif isinstance(sample, Sequence) and not isinstance(sample, str) and len(sample) == 2:
        label = sample[1]
    if isinstance(label, (Tensor, np.ndarray, np.generic)):
        label = label.item() if math.prod(label.shape) == 1 else None
    if not isinstance(label, int):
        raise MisconfigurationException(
            "ReplayBuffer: policy='class_balanced' needs samples (inputs, label), or mappings with"
            f" 'labels', with one integer for a label; a training sample is {_form(sample)}. Use"
            " policy='reservoir', which needs no classes."
        )
    return label


def _form(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return f"a mapping of {', '.join(f'{k}: {_form(v)}' for k, v in sample.items())}"
    if isinstance(sample, (tuple, list)):
        return f"a {type(sample).__name__} of ({', '.join(map(_form, sample))})"
    shape = f" of shape {tuple(sample.shape)}" if isinstance(sample, Tensor) else ""
    return f"{type(sample).__name__}{shape}"


def _nbytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_nbytes, value))
    if isinstance(value, (int, float)):
        return 8
    if not hasattr(value, "nbytes"):
        raise TypeError(
            f"the bytes of {type(value).__name__} in a sample can't be counted: use tensors, "
            "arrays, numbers, texts, and lists and mappings of them"
        )
    return int(value.nbytes)
