import pytest

from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.rules import MergeInputs, Uniform
from recall_lightning.merging.structure import Structure

BLOCKS = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("shallow", "deep")]
INPUTS = MergeInputs(Structure(BLOCKS))


def test_every_weight_has_the_same_and_nothing_is_measured():
    assert Uniform(0.2).coefficients(INPUTS) == {"shallow.weight": 0.2, "deep.weight": 0.2}
    assert not Uniform(0.2).needs


def test_it_may_differ_by_depth_or_by_name():
    assert Uniform([0.3, 0.1]).coefficients(INPUTS) == {"shallow.weight": 0.3, "deep.weight": 0.1}
    by_name = Uniform({"deep*": 0.4, "*": 0.0}).coefficients(INPUTS)
    assert by_name == {"shallow.weight": 0.0, "deep.weight": 0.4}


def test_several_snapshots_share_it():
    shares = Uniform(0.8).joint_coefficients([INPUTS] * 4)
    assert shares == [{"shallow.weight": 0.2, "deep.weight": 0.2}] * 4


@pytest.mark.parametrize("weight", [-0.1, 1.5, [0.2, 2.0], {"deep*": -1.0}, float("nan")])
def test_weights_outside_their_range_are_refused(weight):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]: the snapshot's weight"):
        Uniform(weight)


@pytest.mark.parametrize("weight", [1.0, [1.0, 1.0]])
def test_putting_the_whole_snapshot_back_is_refused(weight):
    with pytest.raises(ValueError, match="weight=1 puts the snapshot back"):
        Uniform(weight)


def test_putting_back_some_of_the_weights_is_not():
    assert Uniform([1.0, 0.5]).coefficients(INPUTS)["shallow.weight"] == 1.0
