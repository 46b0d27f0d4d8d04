import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from recall_lightning.merging.structure import Structure
from tests.support.tiny_models import llama


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def test_blocks_and_linear_maps_of_a_model_are_found():
    structure = Structure.of(net())
    assert sorted(structure.weights) == sorted(name for name, _ in net().named_parameters())
    assert {linear_map.weight for linear_map in structure.maps} == {"0.weight", "2.weight"}
    assert structure.lora_pairs == []


def test_matrices_that_are_no_map_are_told_with_the_reason():
    module = net()
    module.extra = nn.Bilinear(2, 2, 2)
    others = Structure.of(module).others
    assert list(others) == ["extra.weight"]
    assert isinstance(others["extra.weight"], str)


def test_blocks_follow_the_patterns_that_are_given():
    assert [block.name for block in Structure.of(net(), ["2"]).blocks] == ["2"]
    with pytest.raises(ValueError, match="nowhere"):
        Structure.of(net(), ["nowhere.*"])


def test_the_factors_of_an_adapter_are_pairs_and_each_pair_is_one_map():
    model = get_peft_model(llama(0), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    structure = Structure.of(model)
    assert len(structure.lora_pairs) == 4
    assert {(m.weight, m.second_factor) for m in structure.maps} == {
        (pair.a, pair.b) for pair in structure.lora_pairs
    }


def test_maps_are_not_looked_for_where_no_rule_wants_them():
    model = get_peft_model(llama(0), LoraConfig(r=2, target_modules=["q_proj"]))
    whole, without = Structure.of(model), Structure.of(model, with_maps=False)
    assert (without.maps, without.others) == ((), {})
    assert (without.blocks, without.lora_pairs) == (whole.blocks, whole.lora_pairs)
