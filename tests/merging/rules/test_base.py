import pytest

from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.rules import (
    KfacSubspace,
    MergeInputs,
    MergeRule,
    Rbf,
    Uniform,
    rule_by_name,
)
from recall_lightning.merging.rules.base import RULES
from recall_lightning.merging.structure import Structure

BLOCK = Block("layer", 1, 1.0, "layer", ("layer.weight",))


class Half(MergeRule):
    def coefficients(self, inputs):
        return {block.name: 0.5 for block in inputs.blocks}


@pytest.fixture
def names():
    """What registers during a test is forgotten after it."""
    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


def test_a_rule_of_ones_own_is_known_by_its_name(names):
    class Named(Half):
        name = "half"

    assert type(rule_by_name("half")) is Named
    assert [type(rule) for rule in rule_by_name("half*rbf").rules] == [Named, Rbf]


def test_a_rule_without_a_name_is_not_known_and_takes_none_from_its_base(names):
    class Warmer(Rbf):
        pass

    assert set(names.values()).isdisjoint({Half, Warmer})
    assert type(rule_by_name("rbf")) is Rbf


def test_it_needs_nothing_has_full_strength_and_no_other_rule_at_the_end_unless_it_says_so():
    rule = Half()
    assert rule.needs == frozenset()
    assert rule.strength == 1.0
    assert rule.end_rule is None


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan"), [1.0, 2.0], {"*": -1.0}])
def test_strengths_outside_their_range_are_refused(strength):
    with pytest.raises(ValueError, match=r"strength=.* must lie in \[0, 1\]"):
        Half(strength=strength)


def test_it_shows_what_it_was_built_with():
    assert repr(Half()) == "Half(strength=1.0)"
    assert repr(Rbf(0.5)) == "Rbf(temperature=0.5, sigma='median', strength=1.0)"
    assert repr(Uniform([0.2, 0.1])) == "Uniform(weight=[0.2, 0.1])"
    assert repr(KfacSubspace(new_inputs=4.0)).startswith("KfacSubspace(new_inputs=4.0, ridge=0.01")


def test_the_parts_of_the_structure_are_at_hand():
    inputs = MergeInputs(Structure([BLOCK]))
    assert inputs.blocks == [BLOCK]
    assert (inputs.maps, inputs.lora_pairs) == ((), ())


def test_one_snapshot_is_decided_about_alone_and_several_need_joint_coefficients():
    inputs = MergeInputs(Structure([BLOCK]))
    assert Half().joint_coefficients([inputs]) == [{"layer": 0.5}]
    assert (Half().decides_jointly, Rbf().decides_jointly) == (False, True)
    with pytest.raises(ValueError, match="Half decides about one snapshot"):
        Half().joint_coefficients([inputs, inputs])


@pytest.mark.parametrize("name", ["rbf", "auto", "never", "a*b"])
def test_a_name_that_is_taken_or_means_something_else_is_refused(name):
    with pytest.raises(ValueError, match="cannot be called"):
        type("Mine", (MergeRule,), {"name": name, "coefficients": lambda self, inputs: {}})


def test_needs_are_a_set_whatever_they_were_written_as():
    kinds = {"needs": ["importance"], "coefficients": lambda self, inputs: {}}
    assert type("Mine", (MergeRule,), kinds).needs == {"importance"}
    with pytest.raises(ValueError, match="must be a set of names"):
        type("Mine", (MergeRule,), kinds | {"needs": "importance"})
