import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from recall_lightning.data import DigitsStream
from recall_lightning.data.digits import rotate


def tensors(dataset) -> tuple[Tensor, Tensor]:
    images, labels = zip(*dataset, strict=True)
    return torch.stack(images), torch.stack(labels)


@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        ("rotated", ["rotated_0", "rotated_30"]),
        ("permuted", ["permuted_0", "permuted_1"]),
        ("split", ["classes_0_1_2_3_4", "classes_5_6_7_8_9"]),
    ],
)
def test_scenarios(scenario, names) -> None:
    stream = DigitsStream(scenario=scenario, num_tasks=2)
    assert stream.task_names == names
    for task in range(2):
        images, labels = tensors(stream.train_dataset(task))
        assert images.shape[1:] == (1, 8, 8)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.min() >= 0
        assert images.max() <= 1
        classes = range(10) if scenario != "split" else range(task * 5, task * 5 + 5)
        assert labels.unique().tolist() == list(classes)


def test_rotated_tasks_show_the_same_digits_rotated() -> None:
    stream = DigitsStream(num_tasks=4, angle_step=90)
    upright, labels = tensors(stream.train_dataset(0))
    turned, same_labels = tensors(stream.train_dataset(3))
    assert torch.equal(labels, same_labels)
    torch.testing.assert_close(turned, upright.rot90(3, dims=(2, 3)), atol=1e-4, rtol=0)


def test_rotate_by_nothing_changes_nothing() -> None:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(images, 0.0), images)


def test_permuted_tasks_show_the_same_digits_in_one_order_each() -> None:
    stream = DigitsStream(scenario="permuted", num_tasks=3)
    plain, first, second = (tensors(stream.val_dataset(task))[0].flatten(1) for task in range(3))
    assert torch.equal(plain.sort().values, first.sort().values)
    assert not torch.equal(plain, first)
    assert not torch.equal(first, second)
    # training digits and held-out ones go through the same order
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    train = [tensors(stream.train_dataset(task))[0].flatten(1) for task in range(2)]
    assert torch.equal(plain[:, order], first)
    assert torch.equal(train[0][:, order], train[1])


@pytest.mark.parametrize("scenario", ["rotated", "permuted", "split"])
def test_no_test_digit_is_trained_in_any_task(scenario) -> None:
    # With a quarter turn a step, and orders undone by sorting, a digit is known in every form.
    stream = DigitsStream(scenario=scenario, num_tasks=2, angle_step=90)

    def digits(split: str) -> set[tuple]:
        sets = [getattr(stream, f"{split}_dataset")(task) for task in range(2)]
        forms = torch.cat([tensors(data)[0] for data in sets]).flatten(1).sort().values
        return set(map(tuple, forms.mul(16).round().int().tolist()))

    val = digits("val")
    assert not val & digits("train")
    assert len(val) == 450


def test_held_out_part_is_stratified_and_seeded() -> None:
    _, labels = tensors(DigitsStream(num_tasks=1).val_dataset(0))
    assert all(43 <= count <= 46 for count in labels.bincount().tolist())
    assert len(labels) == 450
    torch.rand(2)
    first, again, other = (
        tensors(DigitsStream(num_tasks=1, seed=seed).val_dataset(0))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scenario": "mirrored"}, "mirrored.*rotated"),
        ({"scenario": "split", "num_tasks": 3}, "num_tasks=3 must divide 10"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"angle_step": 0.0}, "unique"),
    ],
)
def test_bad_arguments(kwargs, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        DigitsStream(**kwargs)
