import math

import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.similarity import cosine, linear_cka
from recall_lightning.merging.rules import Cka, Cosine, MergeInputs, Rbf, Similarity
from recall_lightning.merging.structure import Structure

BLOCKS = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("shallow", "deep")]
THEN, NOW = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))


def inputs(similarity):
    return MergeInputs(Structure(BLOCKS), similarity=similarity)


def test_blocks_that_moved_differently_get_different_coefficients():
    rule = Rbf()
    moved = {"shallow": THEN + 0.1 * NOW, "deep": THEN + NOW}
    similarity = {name: rule.similarity(THEN, states) for name, states in moved.items()}
    coefficients = rule.coefficients(inputs(similarity))
    assert coefficients["shallow"] > coefficients["deep"] + 0.05


def test_a_fixed_sigma_of_one_on_wide_states_is_uniform_which_is_why_it_is_not_the_default():
    rule = Rbf(sigma=1.0)
    then, now = torch.randn(8, 512), torch.randn(8, 512)
    assert rule.similarity(then, now) == rule.similarity(then, 2 * now) == 0


@pytest.mark.parametrize(("kind", "measure"), [(Cka, linear_cka), (Cosine, cosine)])
def test_other_rules_exchange_the_measure_alone(kind, measure):
    rule = kind(temperature=0.5)
    assert rule.similarity(THEN, NOW) == measure(THEN, NOW)
    assert rule.coefficients(inputs({"deep": 1.0})) == {"deep": 0.5}


def test_several_snapshots_share_a_softmax_with_the_live_model():
    given = [inputs({"deep": value}) for value in (0.2, 0.8)]
    powers = [math.exp(value / 0.5) for value in (0.2, 0.8, 1.0)]
    found = [w["deep"] for w in Rbf(temperature=0.5).joint_coefficients(given)]
    assert found == pytest.approx([power / sum(powers) for power in powers[:2]])


def test_a_similarity_of_ones_own_is_turned_into_weights_as_the_others_are():
    class Same(Similarity):
        def similarity(self, snapshot_states, live_states):
            return float(torch.equal(snapshot_states, live_states))

    rule = Same(temperature=0.5)
    assert rule.similarity(THEN, THEN) == 1
    given = inputs({"deep": 0.7})
    assert rule.coefficients(given) == Rbf(temperature=0.5).coefficients(given)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Rbf, {"temperature": 0.0}, "temperature=0.0 must be a positive"),
        (Cka, {"temperature": float("nan")}, "temperature=nan must be a positive"),
        (Rbf, {"sigma": "mean"}, "sigma='mean' must be a positive number or 'median'"),
        (Rbf, {"sigma": -1.0}, "sigma=-1.0"),
    ],
)
def test_bad_arguments_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
