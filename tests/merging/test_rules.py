import pytest
import torch

from recall_lightning.merging.rules import (
    RULE_NAMES,
    MergeInputs,
    SimilarityRule,
    UniformRule,
    rule_by_name,
)
from recall_lightning.representations.blocks import Block
from recall_lightning.representations.similarity import cosine, linear_cka

BLOCKS = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("shallow", "deep")]
THEN, NOW = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))


def test_blocks_that_moved_differently_get_different_coefficients():
    rule = rule_by_name("rbf", temperature=1.0, sigma="median", strength=0.3)
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
    rule = rule_by_name(name, temperature=0.5, sigma="median", strength=0.3)
    assert rule.similarity(THEN, NOW) == measure(THEN, NOW)
    assert rule.coefficients(MergeInputs(BLOCKS, {"deep": 1.0})) == {"deep": 0.5}


def test_uniform_needs_no_measure():
    rule = rule_by_name("uniform", temperature=1.0, sigma="median", strength=0.2)
    assert isinstance(rule, UniformRule)
    assert not rule.uses_representations
    assert rule.coefficients(MergeInputs(BLOCKS)) == {"shallow": 0.2, "deep": 0.2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("mean", 1.0, "median", 0.3),
            "rule='mean' is unknown: use one of " + ", ".join(RULE_NAMES),
        ),
        (("rbf", 0.0, "median", 0.3), "temperature=0.0 must be a positive"),
        (("rbf", 1.0, "mean", 0.3), "sigma='mean' must be a positive number or 'median'"),
        (("rbf", 1.0, -1.0, 0.3), "sigma=-1.0"),
        (("uniform", 1.0, "median", 1.5), r"strength=1.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rule_by_name(*arguments)
