import math

import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.similarity import cosine, linear_cka
from recall_lightning.merging.rules import MergeInputs, SimilarityRule

BLOCKS = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("shallow", "deep")]
THEN, NOW = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))


def test_blocks_that_moved_differently_get_different_coefficients():
    rule = SimilarityRule("rbf")
    moved = {"shallow": THEN + 0.1 * NOW, "deep": THEN + NOW}
    similarity = {name: rule.similarity(THEN, states) for name, states in moved.items()}
    coefficients = rule.coefficients(MergeInputs(BLOCKS, similarity))
    assert coefficients["shallow"] > coefficients["deep"] + 0.05


def test_a_fixed_sigma_of_one_on_wide_states_is_uniform_which_is_why_it_is_not_the_default():
    rule = SimilarityRule("rbf", sigma=1.0)
    then, now = torch.randn(8, 512), torch.randn(8, 512)
    assert rule.similarity(then, now) == rule.similarity(then, 2 * now) == 0


@pytest.mark.parametrize(("name", "measure"), [("cka", linear_cka), ("cosine", cosine)])
def test_other_rules_exchange_the_measure_alone(name, measure):
    rule = SimilarityRule(name, temperature=0.5)
    assert rule.similarity(THEN, NOW) == measure(THEN, NOW)
    assert rule.coefficients(MergeInputs(BLOCKS, {"deep": 1.0})) == {"deep": 0.5}


def test_several_snapshots_share_a_softmax_with_the_live_model():
    given = [MergeInputs(BLOCKS, {"deep": value}) for value in (0.2, 0.8)]
    powers = [math.exp(value / 0.5) for value in (0.2, 0.8, 1.0)]
    found = [w["deep"] for w in SimilarityRule(temperature=0.5).joint_coefficients(given)]
    assert found == pytest.approx([power / sum(powers) for power in powers[:2]])


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="measure='mean' is unknown"):
        SimilarityRule("mean")
