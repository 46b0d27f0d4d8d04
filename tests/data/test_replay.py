import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset, TensorDataset

from recall_lightning.data import ReplayBuffer
from recall_lightning.data.replay import class_balanced, class_labels, reservoir


def labelled(labels: list[int], first: int = 0) -> TensorDataset:
    """Samples (number, label), numbered from ``first``."""
    return TensorDataset(torch.arange(first, first + len(labels)), torch.tensor(labels))


def numbers(stored: Dataset) -> list[int]:
    return [int(number) for number, _ in stored]  # type: ignore[attr-defined]


# --- which samples are kept -----------------------------------------------------------------------


def test_reservoir_keeps_every_sample_so_far_with_the_same_probability() -> None:
    runs, kept = 4000, torch.zeros(30)
    for seed in range(runs):
        kept[reservoir([5, 15, 10], 6, seed)] += 1
    probability = 6 / 30
    statistic = ((kept - runs * probability) ** 2 / (runs * probability * (1 - probability))).sum()
    assert statistic < 70  # chi-square of 29 degrees of freedom: 1 in 30 000 lies above
    assert kept.sum() == 6 * runs


def test_reservoir_is_algorithm_r() -> None:
    """Against the textbook's loop, fed with the places that were drawn."""
    generator = torch.Generator().manual_seed(7 * 1_000_003)
    drawn = torch.rand(50, dtype=torch.float64, generator=generator).tolist()
    kept = list(range(8))
    for sample in range(8, 50):
        place = int(drawn[sample] * (sample + 1))
        if place < 8:
            kept[place] = sample
    assert reservoir([50], 8, seed=7) == kept


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
@pytest.mark.parametrize("limit", [{"capacity": 12}, {"per_task": 5}])
def test_no_sample_comes_back_that_was_not_kept(policy, limit) -> None:
    tasks = [labelled([0, 1] * 10), labelled([1, 2, 3] * 8, 100), labelled([0, 4] * 9, 200)]
    buffer = ReplayBuffer(policy=policy, **limit)
    earlier = set(numbers(buffer.after(tasks[:1], seed=3)))
    for count in (2, 3):
        now = set(numbers(buffer.after(tasks[:count], seed=3)))
        assert now <= earlier | set(numbers(tasks[count - 1]))
        earlier = now


def test_fewer_samples_than_places_are_all_kept() -> None:
    assert sorted(reservoir([3, 4], 10, seed=0)) == list(range(7))
    assert class_balanced([[0, 1, 1], [2, 2]], 10, seed=0) == list(range(5))


def test_classes_have_equal_shares() -> None:
    tasks = [[0] * 40 + [1] * 7, [2] * 9 + [0] * 11]
    labels = torch.tensor([*tasks[0], *tasks[1]])
    for capacity in (3, 10, 20):
        kept = class_balanced(tasks, capacity, seed=0)
        assert labels[kept].bincount().tolist() == [capacity // 3] * 3
    # what a small class cannot fill goes to the others
    assert labels[class_balanced(tasks, 27, seed=0)].bincount().tolist() == [11, 7, 9]


def test_within_a_class_the_tasks_are_drawn_from_alike() -> None:
    runs, kept = 2000, torch.zeros(20)
    for seed in range(runs):
        kept[class_balanced([[0] * 8 + [1] * 4, [0] * 4 + [1] * 4], 8, seed)] += 1
    for label, members in ((0, [*range(8), *range(12, 16)]), (1, [*range(8, 12), *range(16, 20)])):
        probability = 4 / len(members)
        deviation = (kept[members] / runs - probability).abs().max()
        assert deviation < 5 * (probability * (1 - probability) / runs) ** 0.5, label


def test_each_task_may_have_its_own_number() -> None:
    tasks = [labelled([0] * 20), labelled([1] * 30, 100), labelled([2] * 3, 200)]
    kept = numbers(ReplayBuffer(per_task=5).after(tasks, seed=0))
    assert [sum(first <= n < first + 100 for n in kept) for first in (0, 100, 200)] == [5, 5, 3]
    # what is kept of a task does not depend on the tasks after it
    assert kept[:5] == numbers(ReplayBuffer(per_task=5).after(tasks[:1], seed=0))


def test_the_choice_depends_on_the_seed_and_draws_from_no_global_generator() -> None:
    class Augmenting(Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.rand(1) + np.random.rand(), index % 4

    for policy in ("reservoir", "class_balanced"):
        buffer = ReplayBuffer(capacity=8, policy=policy)  # type: ignore[arg-type]
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        stored = buffer.after([Augmenting()], seed=0)
        assert stored.nbytes == 8 * (4 + 8)
        assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == numpy_before).all()
        assert stored.indices == buffer.after([Augmenting()], seed=0).indices
        assert stored.indices != buffer.after([Augmenting()], seed=1).indices


# --- what it takes --------------------------------------------------------------------------------


def test_bytes_are_those_of_all_tensors_arrays_and_numbers() -> None:
    samples = [{"a": torch.zeros(3), "b": [np.zeros(2, dtype=np.int16), 1.5]}] * 4
    assert ReplayBuffer(capacity=3).after([samples], seed=0).nbytes == 3 * (12 + 4 + 8)
    with pytest.raises(TypeError, match="bytes of object"):
        _ = ReplayBuffer().after([[object()]], seed=0).nbytes


# --- labels and errors ----------------------------------------------------------------------------


def test_labels_are_found_in_tuples_and_mappings() -> None:
    forms = [torch.tensor(1), torch.tensor([1]), np.int64(1), np.array([1]), 1]
    samples = [(torch.zeros(2), form) for form in forms] + [{"labels": form} for form in forms]
    assert class_labels(samples) == [1] * 10


@pytest.mark.parametrize(
    ("sample", "form"),
    [
        ({"labels": torch.zeros(5).long()}, r"mapping of labels: Tensor of shape \(5,\)"),
        ((torch.zeros(2), torch.tensor(0.5)), "Tensor"),
        ((torch.zeros(2),), "tuple of"),
        ({"inputs": 3}, "mapping of inputs: int"),
        ("ab", "is str"),
        (torch.zeros(2, 2), "Tensor"),
    ],
)
def test_samples_without_a_class_are_refused_where_classes_are_balanced(sample, form) -> None:
    with pytest.raises(MisconfigurationException, match=f"needs samples.*{form}.*reservoir"):
        ReplayBuffer(policy="class_balanced").after([[sample]], seed=0)
    assert len(ReplayBuffer(policy="reservoir").after([[sample]], seed=0)) == 1


def test_more_classes_than_places() -> None:
    with pytest.raises(MisconfigurationException, match=r"2 places.*3 classes"):
        ReplayBuffer(capacity=2, policy="class_balanced").after([labelled([0, 1, 2])], seed=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"capacity": True}, "capacity=True"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"per_task": 1.5}, "per_task=1.5"),
        ({"policy": "fifo"}, "policy='fifo'"),
        ({"capacity": 5, "per_task": 5}, "exclude each other"),
    ],
)
def test_bad_arguments(kwargs, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ReplayBuffer(**kwargs)


def test_defaults() -> None:
    assert ReplayBuffer().capacity == 500
    assert ReplayBuffer(per_task=100).capacity is None
