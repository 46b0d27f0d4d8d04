"""Fashion-MNIST in tasks as the literature makes them of MNIST: permuted, or classes in turn."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.real.images import Pictures, fashion_mnist, first, split
from recall_lightning.data import TaskStream

_CLASSES = 10


class Permuted(Dataset[tuple[Tensor, Tensor]]):
    """Pictures with their pixels in another order: float32 ``(pixels,)`` in [0, 1], and a label.

    They are permuted when they are read: twenty tasks of 60,000 would be 4 GB.

    Args:
        pictures: All of them.
        order: For each pixel which one comes there, int64 ``(pixels,)``.
    """

    def __init__(self, pictures: Pictures, order: Tensor) -> None:
        images, self.labels = pictures
        self.pixels = images.flatten(1)
        self.order = order

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index][self.order] / 255, self.labels[index]


def permuted(
    seed: int = 0,
    num_tasks: int = 20,
    train_images: int = 60_000,
    val_images: int = 2_000,
    epochs_per_task: int = 2,
    batch_size: int = 128,
) -> TaskStream:
    """Domain-incremental: all ten classes in every task, pixels in an order of its own.

    Task 0 shows the pictures as they are.

    Args:
        seed: Draws the pictures and the permutations, and orders samples.
        num_tasks: Number of tasks.
        train_images: Pictures of each task to train on.
        val_images: Held-out pictures, the same for each task, of the 10,000 for tests.
        epochs_per_task: Epochs of each task.
        batch_size: Pictures in a training batch.
    """
    train, val = _drawn(train_images, val_images, seed)
    pixels = train[0][0].numel()
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(pixels)]
    orders += [torch.randperm(pixels, generator=generator) for _ in range(num_tasks - 1)]
    return TaskStream.from_datasets(
        [(Permuted(train, order), Permuted(val, order)) for order in orders],
        [f"permuted_{task}" for task in range(num_tasks)],
        seed=seed,
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=1000,
    )


def class_incremental(
    seed: int = 0,
    num_tasks: int = 5,
    train_images: int = 60_000,
    val_images: int = 10_000,
    epochs_per_task: int = 4,
    batch_size: int = 128,
) -> TaskStream:
    """Class-incremental: an equal share of the classes a task, under one head of ten.

    Args:
        seed: Draws the pictures, and orders samples.
        num_tasks: Number of tasks; it divides 10.
        train_images: Pictures to train on, of all classes together.
        val_images: Held-out pictures, of all classes together, of the 10,000 for tests.
        epochs_per_task: Epochs of each task.
        batch_size: Pictures in a training batch.
    """
    train, val = _drawn(train_images, val_images, seed)
    order = torch.arange(train[0][0].numel())
    share = _CLASSES // num_tasks
    pairs, names = [], []
    for lowest in range(0, _CLASSES, share):
        classes = torch.arange(lowest, lowest + share)
        pairs.append((Permuted(_of(train, classes), order), Permuted(_of(val, classes), order)))
        names.append("classes_" + "_".join(map(str, classes.tolist())))
    return TaskStream.from_datasets(
        pairs,
        names,
        seed=seed,
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=1000,
    )


def _of(pictures: Pictures, classes: Tensor) -> Pictures:
    images, labels = pictures
    own = torch.isin(labels, classes)
    return images[own], labels[own]


def _drawn(train_images: int, val_images: int, seed: int) -> tuple[Pictures, Pictures]:
    """Draw pictures of the data set's own two parts."""
    train, _ = split(fashion_mnist("train"), 0, seed)
    test, _ = split(fashion_mnist("test"), 0, seed)
    return first(train, train_images), first(test, val_images)
