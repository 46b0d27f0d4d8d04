from dataclasses import dataclass

import pytest
import torch
from transformers import BatchEncoding

from recall_lightning.measuring.batches import (
    batch_size,
    concatenate,
    only_tensors,
    rebuild,
    sample_axis,
    select_samples,
    tensors_of,
)


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


X, Y = torch.arange(12).view(4, 3), torch.arange(4)
BATCHES = [
    X,
    (X, Y),
    [X, Y],
    {"x": X, "y": Y},
    BatchEncoding({"input_ids": X, "labels": Y}),
    Pair(X, Y),
    ({"x": X}, Y),
]


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_any_kind_of_batch_is_parted_into_the_same_kind(batch):
    assert batch_size(batch) == 4
    part = select_samples(batch, torch.tensor([2, 0]))
    assert type(part) is type(batch)
    assert torch.equal(tensors_of(part)[0], X[[2, 0]])


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_parts_that_fit_are_joined_again(batch):
    parts = [select_samples(batch, torch.tensor(indices)) for indices in ([0, 1], [2, 3])]
    joined = concatenate(parts, most=4)
    assert len(joined) == 1
    together = torch.cat([tensors_of(part)[0] for part in joined])
    assert torch.equal(together, X)
    assert len(concatenate(parts, most=3)) == 2


def test_batches_padded_to_different_lengths_stay_apart():
    assert len(concatenate([torch.zeros(2, 3), torch.zeros(2, 5)], most=8)) == 2


def test_texts_are_parted_with_their_tensors():
    batch = {"x": X, "text": ["a", "b", "c", "d"], "name": "kept", "nested": [X, Y]}
    part = select_samples(batch, torch.tensor([3]))
    assert part["text"] == ["d"]
    assert part["name"] == "kept"
    assert [len(tensor) for tensor in part["nested"]] == [1, 1]


def test_sequence_first_batches_are_parted_along_their_second_axis():
    batch = (torch.zeros(7, 4, 2), torch.zeros(5, 4, 2))
    assert sample_axis(batch) == 1
    assert [part.shape[1] for part in select_samples(batch, torch.tensor([0, 3]))] == [2, 2]
    assert concatenate([batch, batch], most=8)[0][1].shape == (5, 8, 2)


def test_a_batch_without_a_common_number_of_samples_is_refused():
    with pytest.raises(ValueError, match=r"agree on no number of samples.*\(4, 3\), \(3,\)"):
        batch_size((X, torch.zeros(3)))
    with pytest.raises(ValueError, match="holds no tensor"):
        batch_size(["text"])


def test_tensors_put_back_make_the_same_batch():
    batch = BatchEncoding({"input_ids": X, "labels": Y})
    again = rebuild(batch, only_tensors(batch))
    assert type(again) is BatchEncoding
    assert torch.equal(again["input_ids"], X)
    assert only_tensors({"x": X, "text": ["a"]}) is None


def test_a_tensor_that_belongs_to_no_sample_is_carried_along():
    batch = {"x": X, "y": Y, "class_weight": torch.ones(7)}
    part = select_samples(batch, torch.tensor([1]))
    assert [len(tensor) for tensor in tensors_of(part)] == [1, 1, 7]


def test_texts_in_a_tuple_are_parted_too():
    part = select_samples((X, ("a", "b", "c", "d"), Y), torch.tensor([2]))
    assert part[1] == ("c",)


def test_tensors_of_another_number_do_not_fit():
    with pytest.raises(ValueError, match="2 tensors must be 1"):
        rebuild({"x": X}, [X, Y])


def test_batches_with_a_tensor_that_belongs_to_no_sample_stay_apart():
    batch = {"x": X, "y": Y, "class_weight": torch.ones(7)}
    assert [len(part["class_weight"]) for part in concatenate([batch, batch], most=8)] == [7, 7]
