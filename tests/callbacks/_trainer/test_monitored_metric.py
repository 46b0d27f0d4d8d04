from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.callbacks._trainer.monitored_metric import direction_of, scores_by_loader


def scores(monitor, loaders, **logged):
    return scores_by_loader("Asking", SimpleNamespace(callback_metrics=logged), monitor, loaders)


def test_only_the_form_that_belongs_to_the_number_of_loaders_is_read():
    logged = {"acc": 0.1, "acc/dataloader_idx_0": 0.2, "acc/dataloader_idx_1": 0.3}
    assert scores("acc", 1, **logged) == [0.1]
    assert scores("acc", 2, **logged) == [0.2, 0.3]


def test_a_name_may_hold_the_loaders_index_itself():
    assert scores("val_{idx}/acc", 2, **{"val_0/acc": 0.2, "val_1/acc": 0.3}) == [0.2, 0.3]


def test_the_loader_without_the_metric_is_named_with_what_was_logged():
    said = "^Asking: monitor='f1' was not logged for validation dataloader 0; logged were acc$"
    with pytest.raises(MisconfigurationException, match=said):
        scores("f1", 2, **{"acc/dataloader_idx_0": 0.2, "acc/dataloader_idx_1": 0.3})


@pytest.mark.parametrize(
    ("monitor", "higher"),
    [
        ("val/acc", True), ("val_loss", False), ("val/perplexity", False), ("test/f1", True),
        ("bits_per_byte", False), ("valid/top1-accuracy", True), ("val/MulticlassAccuracy", True),
        ("val_acc1", True), ("valLoss", False), ("val_cross_entropy", False), ("val.f1score", True),
    ],
)  # fmt: skip
def test_the_direction_is_told_from_the_name(monitor, higher):
    assert direction_of("Asking", monitor, "auto") is higher
    assert direction_of("Asking", monitor, "max")
    assert not direction_of("Asking", monitor, "min")


def test_a_name_that_tells_no_direction_asks_for_one():
    with pytest.raises(MisconfigurationException, match=r"^Asking: .*'val/reward'.*mode='max' or"):
        direction_of("Asking", "val/reward", "auto")
    with pytest.raises(MisconfigurationException, match="mode='up'"):
        direction_of("Asking", "val/acc", "up")
