import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.callbacks._trainer.direction import direction_of


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
