from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.rules import MergeInputs, UniformRule

BLOCKS = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("shallow", "deep")]


def test_every_block_has_one_and_nothing_is_measured():
    rule = UniformRule()
    assert not (rule.uses_representations)
    assert not (rule.uses_importance)
    assert not (rule.uses_moments)
    assert rule.coefficients(MergeInputs(BLOCKS)) == {"shallow": 1.0, "deep": 1.0}


def test_several_snapshots_share_it():
    inputs = [MergeInputs(BLOCKS)] * 4
    assert UniformRule().joint_coefficients(inputs) == [{"shallow": 0.25, "deep": 0.25}] * 4
