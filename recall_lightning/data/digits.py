"""Small image streams that need no download."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from recall_lightning.data.sampling import mix_seed
from recall_lightning.data.stream import TaskStream

_NUM_CLASSES = 10


class DigitsStream(TaskStream):
    """Handwritten digits, 8 by 8 pixels, as a stream of tasks.

    The data are the 1797 digits that ship with scikit-learn (Alpaydin and Kaynak, 1998). A sample
    is a tuple of an image, float32 ``(1, 8, 8)`` with values in [0, 1], and its class, int64
    ``()``. The held-out digits are the same for all tasks and stratified by class, so no test digit
    is ever trained, in whatever form.

    Scenarios:

    - ``"rotated"``: domain-incremental. Task k shows all digits, rotated by ``k * angle_step``
      degrees counter-clockwise.
    - ``"permuted"``: domain-incremental. Task 0 shows the digits as they are, every other task
      with their pixels in a random order that is fixed for the task.
    - ``"split"``: class-incremental. Each task shows an equal share of the classes, in order;
      labels stay those of all ten classes.

    Example::

        >>> stream = DigitsStream(scenario="split", num_tasks=5)
        >>> stream.task_names
        ['classes_0_1', 'classes_2_3', 'classes_4_5', 'classes_6_7', 'classes_8_9']
        >>> image, label = stream.train_dataset(0)[0]
        >>> image.shape, label.shape
        (torch.Size([1, 8, 8]), torch.Size([]))

    Args:
        scenario: How tasks differ.
        num_tasks: Number of tasks. In the ``"split"`` scenario it must divide 10.
        val_fraction: The part of each class that is held out, between 0 and 1.
        angle_step: Degrees from one task to the next in the ``"rotated"`` scenario.
        **kwargs: Arguments of :class:`~recall_lightning.TaskStream`. Its ``seed`` also chooses
            the held-out digits and the permutations.

    Raises:
        MisconfigurationException: If the scenario is unknown, ``num_tasks`` does not fit it,
            ``val_fraction`` leaves nothing on either side, or ``angle_step`` is 0.
    """

    def __init__(
        self,
        *,
        scenario: Literal["rotated", "permuted", "split"] = "rotated",
        num_tasks: int = 5,
        val_fraction: float = 0.25,
        angle_step: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if scenario not in ("rotated", "permuted", "split"):
            raise MisconfigurationException(
                f"scenario={scenario!r} is unknown; choose 'rotated', 'permuted' or 'split'."
            )
        if num_tasks < 1 or (scenario == "split" and _NUM_CLASSES % num_tasks):
            rule = "divide 10" if scenario == "split" else "be 1 or more"
            raise MisconfigurationException(
                f"num_tasks={num_tasks} must {rule} in the {scenario!r} scenario."
            )
        if not 0 < val_fraction < 1:
            raise MisconfigurationException(
                f"val_fraction={val_fraction} must lie between 0 and 1."
            )
        self.scenario = scenario
        self.val_fraction = val_fraction
        self.angle_step = angle_step
        self._num_tasks = num_tasks
        self._digits: tuple[Tensor, Tensor, Tensor] | None = None
        _ = self.total_epochs  # checks names and epochs now rather than in setup

    @property
    def task_names(self) -> list[str]:
        """Names such as ``rotated_30``, ``permuted_1`` or ``classes_0_1``."""
        tasks = range(self._num_tasks)
        if self.scenario == "rotated":
            return [f"rotated_{task * self.angle_step:g}" for task in tasks]
        if self.scenario == "permuted":
            return [f"permuted_{task}" for task in tasks]
        return ["classes_" + "_".join(map(str, self._classes(task))) for task in tasks]

    def train_dataset(self, task: int) -> Dataset[tuple[Tensor, ...]]:
        """Training digits of ``task``."""
        return self._build(task, held_out=False)

    def val_dataset(self, task: int) -> Dataset[tuple[Tensor, ...]]:
        """Held-out digits of ``task``."""
        return self._build(task, held_out=True)

    def _build(self, task: int, held_out: bool) -> TensorDataset:
        if self._digits is None:
            self._digits = _load_digits(self.val_fraction, self.seed)
        images, labels, is_held_out = self._digits
        chosen = is_held_out == held_out
        if self.scenario == "split":
            chosen = chosen & torch.isin(labels, torch.tensor(self._classes(task)))
        images, labels = images[chosen], labels[chosen]
        if self.scenario == "rotated":
            images = rotate(images, task * self.angle_step)
        elif self.scenario == "permuted" and task > 0:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, task))
            order = torch.randperm(images[0].numel(), generator=generator)
            images = images.flatten(1)[:, order].view_as(images)
        return TensorDataset(images, labels)

    def _classes(self, task: int) -> list[int]:
        share = _NUM_CLASSES // self._num_tasks
        return list(range(task * share, (task + 1) * share))


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise about their centre, bilinearly; zeros come in at the corners.

    Args:
        images: Square images ``(N, C, H, H)``.
        degrees: The angle.

    Returns:
        Images of the same shape.

    Example::

        >>> image = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> rotate(image, 90).round(decimals=4).tolist()
        [[[[0.0, 0.0], [1.0, 0.0]]]]
    """
    angle = torch.deg2rad(torch.tensor(degrees))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(())
    matrix = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
    grid = functional.affine_grid(
        matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return functional.grid_sample(images, grid, align_corners=False)


def _load_digits(val_fraction: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``(N, 1, 8, 8)``, labels ``(N,)`` and which of them are held out, bool ``(N,)``."""
    from sklearn.datasets import load_digits  # heavy

    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
    labels = torch.from_numpy(targets).long()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in range(_NUM_CLASSES):
        members = (labels == label).nonzero().squeeze(1)
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return images, labels, held_out
