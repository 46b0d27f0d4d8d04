import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.merging.blockwise import merge_snapshots_, scaled_by, weights_of_names
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.rules import (
    Cka,
    Importance,
    MergeInputs,
    MergeRule,
    Product,
    Rbf,
    Subspace,
    Uniform,
    rule_by_name,
)
from recall_lightning.merging.structure import Structure

BLOCK = Block("layer", 8, 1.0, "layer", ("layer.weight", "layer.bias"))


class Half(MergeRule):
    def coefficients(self, inputs):
        return {block.name: 0.5 for block in inputs.blocks}


def measured(**kwargs):
    generator = torch.Generator().manual_seed(0)
    linear_map = LinearMap("layer.weight", "layer.bias", "linear", ("layer",), 4)
    sides = [torch.randn(9, 4, generator=generator) for _ in range(2)]
    old, new = (
        {"layer.weight": FullMoments(x.T @ x / 9, torch.tensor(1.0))} for x in sides
    )  # fmt: skip
    structure = Structure([BLOCK], [linear_map])
    return MergeInputs(
        structure, similarity={"layer": 0.6}, old_moments=old, new_moments=new, **kwargs
    )


def test_similarity_times_importance_is_the_product_element_by_element():
    inputs = measured(importance={"layer.weight": torch.rand(2, 3)})
    found = rule_by_name("rbf*importance").coefficients(inputs)
    similarity = Rbf().coefficients(inputs)["layer"]
    importance = Importance().coefficients(inputs)
    for name in BLOCK.weights:
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(similarity * importance[name])
        )


def test_it_measures_what_its_factors_use():
    product = rule_by_name("cka*importance")
    assert product.needs == {"similarity", "importance"}
    then, now = torch.randn(2, 8, 4)
    assert product.similarity(then, now) == Cka().similarity(then, now)
    assert not Product([Uniform(0.2), Uniform(0.3)]).needs


@pytest.mark.parametrize(
    "rules", [[Half(), Subspace()], [Subspace(), Uniform(0.8), Uniform(0.625)]]
)
def test_a_matrix_times_a_number_is_merged_once_and_moves_by_that_much_less(rules):
    inputs, then = measured(), {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(2)}

    def merged(rule):
        live = {name: torch.zeros_like(tensor) for name, tensor in then.items()}
        weights = weights_of_names(rule.coefficients(inputs), [BLOCK], then)
        merge_snapshots_(live, [then], [scaled_by(weights, 0.5, [BLOCK])])
        return live

    whole, half = merged(Subspace()), merged(Product(rules))
    for name in then:
        torch.testing.assert_close(half[name], 0.5 * whole[name])


def test_the_factors_of_a_lora_pair_go_on_sharing_a_matrix():
    pair = LoraPair("layer", "layer.weight", "layer.bias", 1.0, 2)
    weights = Product([Half(), Subspace()]).coefficients(measured())
    copies = dict.fromkeys(BLOCK.weights, torch.zeros(2, 2))
    found = weights_of_names(weights, [BLOCK], copies, [pair])
    assert found["layer.weight"] is found["layer.bias"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rbf*cka", "one rule of similarity, not two"),
        ("importance*subspace", "importance times a subspace or kfac rule"),
        ("subspace*subspace", "give matrices, not two"),
        ("kfac_importance*subspace", "give matrices, not two"),
        (
            "importance*kfac_importance",
            "importance times a subspace or kfac rule",
        ),
    ],
)
def test_products_that_mean_nothing_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        rule_by_name(name)


def test_its_strength_is_given_to_the_product_alone():
    assert Product([Half(), Half()], strength=0.5).strength == 0.5
    with pytest.raises(ValueError, match="strength of its own: give it to the product"):
        Product([Half(), Importance(strength=0.5)])


class Elementwise(Half):
    def coefficients(self, inputs):
        return {"layer.weight": torch.rand(2, 3), "layer.bias": 0.5}


def test_a_matrix_times_a_number_an_element_is_refused():
    with pytest.raises(ValueError, match="must be multiplied by a number, not by a Tensor"):
        Product([Elementwise(), Subspace()]).coefficients(measured())


def test_a_factor_that_leaves_out_a_block_is_refused():
    class Nothing(Half):
        def coefficients(self, inputs):
            return {}

    with pytest.raises(ValueError, match="must give a coefficient for every block"):
        Product([Nothing(), Half()]).coefficients(measured())


@pytest.mark.parametrize("rules", [[], [Uniform(0.5)], ["rbf", "importance"]], ids=str)
def test_a_product_is_of_two_rules_or_more(rules):
    with pytest.raises(ValueError, match="two rules or more"):
        Product(rules)


def test_products_of_products_measure_one_similarity():
    nested = Product([Product([Rbf(), Uniform(0.5)]), Importance()])
    states = torch.eye(3)
    assert nested.similarity(states, states) == 1.0
    with pytest.raises(ValueError, match="one rule of similarity, not two"):
        Product([nested, Rbf()])
