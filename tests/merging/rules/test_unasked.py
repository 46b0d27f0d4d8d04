import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.rules import MergeInputs, MergeRule, Product, Uniform
from recall_lightning.merging.rules.unasked import only_asked
from recall_lightning.merging.structure import Structure
from tests.support.training import Plain, loader, quiet_trainer

INPUTS = MergeInputs(Structure([Block("layer", 1, 1.0, "layer", ("layer.weight",))]))


class ReadsSimilarity(MergeRule):
    def coefficients(self, inputs):
        return {block.name: inputs.similarity.get(block.name, 0.0) for block in inputs.blocks}


@pytest.mark.parametrize("read", [bool, len, list, dict, lambda known: known.get("layer")])
def test_what_was_not_asked_for_cannot_be_read(read):
    found = only_asked(Uniform(0.2), INPUTS)
    with pytest.raises(ValueError, match=r"Uniform reads inputs.old_moments .* put 'moments' into"):
        read(found.old_moments)
    with pytest.raises(ValueError, match="put 'curvature' and 'new_moments' into its needs"):
        read(found.new_output_moments)


def test_what_was_asked_for_may_be_empty():
    class Asks(ReadsSimilarity):
        needs = frozenset({"similarity"})

    assert Asks().coefficients(only_asked(Asks(), INPUTS)) == {"layer": 0.0}


def test_a_factor_of_a_product_has_to_ask_itself():
    product = Product([ReadsSimilarity(), Uniform(0.2)])
    with pytest.raises(ValueError, match=r"^ReadsSimilarity reads inputs\.similarity"):
        product.coefficients(only_asked(product, INPUTS))


def test_a_run_says_so_in_one_sentence():
    callback = RecallCallback(every=1.0, rule=ReadsSimilarity(), merge_first_task=True)
    torch.manual_seed(0)
    with pytest.raises(MisconfigurationException, match="put 'similarity' into its needs"):
        quiet_trainer(callback).fit(Plain(), loader(0))
