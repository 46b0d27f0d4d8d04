import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import IterableDataset, SequentialSampler

from recall_lightning.data.loading import ResumableLoader
from recall_lightning.data.sampling import SeededSampler


class Counting(IterableDataset):
    def __iter__(self):
        return iter(range(10))


LOADERS = {
    "own sampler": ResumableLoader(range(10), batch_size=3, sampler=SeededSampler(range(10), 0)),
    "another": ResumableLoader(range(10), batch_size=3, sampler=SequentialSampler(range(10))),
    "iterable": ResumableLoader(Counting(), batch_size=3),
}


def values(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("trained", [0, 2, 4])
def test_a_restored_loader_goes_on_after_the_batches_that_were_trained(loader, trained):
    whole = values(loader)
    loader.load_state_dict({"epoch": 0, "batches": trained})
    assert values(loader) == values(loader) == whole[trained:]


def test_the_position_in_another_epoch_means_nothing():
    loader = ResumableLoader(range(4), epoch=1, batch_size=2)
    loader.load_state_dict({"epoch": 0, "batches": 1})
    assert values(loader) == [[0, 1], [2, 3]]


def test_the_position_is_what_training_says_and_not_what_was_read_ahead():
    loader = ResumableLoader(range(4), epoch=2, trained_batches=lambda: 1, batch_size=1)
    values(loader)
    assert loader.state_dict() | {"order": 0} == {"epoch": 2, "batches": 1, "order": 0}


def test_workers_get_the_same_seeds_however_often_a_loader_is_read():
    generator = torch.Generator().manual_seed(5)
    loader = ResumableLoader(range(4), generator=generator)
    assert iter(loader)._base_seed == iter(loader)._base_seed


def test_rows_that_workers_deal_out_are_not_those_of_other_workers():
    """Each worker makes batches of its own, so the first of two workers' are not those of one."""
    state = ResumableLoader(Counting(), trained_batches=lambda: 1, batch_size=2).state_dict()
    ResumableLoader(Counting(), batch_size=2, num_workers=1).load_state_dict(state)
    with pytest.raises(MisconfigurationException, match="readers 2 for 1"):
        ResumableLoader(Counting(), batch_size=2, num_workers=2).load_state_dict(state)
    del state["order"]["readers"]  # as checkpoints were written once
    ResumableLoader(Counting(), batch_size=2, num_workers=2).load_state_dict(state)
