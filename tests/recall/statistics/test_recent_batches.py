import copy

import pytest
import torch

from recall_lightning.recall.statistics.recent_batches import RecentBatches


def test_batches_come_back_from_a_checkpoint_before_the_next_one():
    recent, back = RecentBatches(3), RecentBatches(3)
    for value in range(4):
        recent.keep([torch.full((2,), float(value)), torch.zeros(2)])
    back.load_state_dict(copy.deepcopy(recent.state_dict()))
    back.keep([torch.full((2,), 9.0), torch.zeros(2)])
    assert [batch[0][0].item() for batch in back.batches] == [2, 3, 9]


def test_a_batch_that_training_changes_is_kept_as_it_was():
    recent, batch = RecentBatches(1), [torch.zeros(2)]
    recent.keep(batch)
    batch.clear()
    assert len(recent.batches[0]) == 1


def test_batches_that_are_no_tensors_alone_are_not_in_checkpoints():
    recent = RecentBatches(2)
    with pytest.warns(UserWarning, match="leave the last 2 of them out"):
        recent.keep({"x": torch.zeros(1), "text": ["a"]})
    assert recent.state_dict() == {"processes": [[None]]}


def test_a_state_takes_the_place_of_what_was_kept():
    recent, other = RecentBatches(3), RecentBatches(3)
    recent.keep(torch.zeros(1))
    other.keep(torch.ones(1))
    recent.load_state_dict(other.state_dict())
    recent.keep(torch.full((1,), 2.0))
    assert [batch.item() for batch in recent.batches] == [1.0, 2.0]
