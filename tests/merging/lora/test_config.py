import json

import pytest

from recall_lightning.merging.lora.config import AdapterConfig, merged_adapter_config

peft = pytest.importorskip("peft")
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}


@pytest.mark.parametrize("rslora", [False, True])
def test_scale_is_alpha_over_rank_or_its_root(rslora):
    config = AdapterConfig.read(peft.LoraConfig(r=16, lora_alpha=8, use_rslora=rslora))
    assert config.scale("any") == (2.0 if rslora else 0.5)


@pytest.mark.parametrize(
    "patterns",
    [
        {"q": 1, "layers.0.q": 2},
        {"layers.0.q": 2, "q": 1},
        {"^layers.0.q": 3},
        {"^model.layers.0.q": 4},
        {r"layers\.\d+\.(q|v)": 5},
        {"ers.0.q": 6},
        {"q|v": 7},
        {"layers.0": 8},
    ],
)
@pytest.mark.parametrize(
    "module", ["model.layers.0.q", "model.layers.1.q", "q", "model.layers.0.v"]
)
def test_patterns_match_as_in_peft(patterns, module):
    key = peft.utils.other.get_pattern_key(patterns, module)
    config = AdapterConfig(9, 9, rank_pattern=patterns, alpha_pattern=patterns)
    assert config.rank(module) == patterns.get(key, 9)
    assert config.scale(module) == 1


def test_fields_that_are_missing_or_null_are_defaults():
    config = AdapterConfig.read(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "rank_pattern": None}
    )
    assert config == AdapterConfig(2, 1)


@pytest.mark.parametrize("start", [True, False, "Gaussian", "eva", "orthogonal"])
def test_initialisations_that_keep_the_base_are_read(start):
    assert AdapterConfig.read(PLAIN | {"init_lora_weights": start}).r == 4


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": "LOHA"},
        {"bias": "lora_only"},
        *({name: True} for name in ("use_dora", "lora_bias", "use_qalora", "ensure_weight_tying")),
        {"alora_invocation_tokens": [1]},
        {"arrow_config": {"top_k": 3}},
        {"kasa_config": {"beta": 1}},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["experts"]},
        *(
            {"init_lora_weights": s}
            for s in ("pissa_niter_4", "olora", "loftq", "corda", "lora_ga")
        ),
        {"r": 0},
        {"r": None},
        {"lora_alpha": "8"},
    ],
    ids=str,
)
def test_refuses_by_name(setting):
    with pytest.raises(ValueError, match=f"here: .*{next(iter(setting))}="):
        AdapterConfig.read(PLAIN | setting, "here")


def test_every_variant_that_peft_knows_is_refused():
    fields = peft.LoraConfig.__dataclass_fields__.values()
    variants = [f.name for f in fields if f.metadata.get("is_lora_variant")]
    assert len(variants) > 3
    for name in variants:
        with pytest.raises(ValueError, match=f"{name}="):
            AdapterConfig.read(PLAIN | {name: True})


def test_merged_config_gives_every_module_its_rank_and_the_scale_1():
    ranks = {"layers.1.q": 7, "x.layers.1.q": 5, "layers-1.q": 5, "q": 5}
    config = peft.LoraConfig(r=3, lora_alpha=9, use_rslora=True, target_modules=["q"])
    merged = json.loads(json.dumps(merged_adapter_config([config, PLAIN], ranks)))
    read = AdapterConfig.read(peft.LoraConfig(**merged))
    for module, rank in ranks.items():
        assert read.rank(module) == rank
        assert read.scale(module) == 1


def test_merged_config_names_the_modules_where_the_choices_differ():
    merged = merged_adapter_config([PLAIN, PLAIN | {"layers_to_transform": [0]}], {"b": 1, "a": 1})
    assert merged["target_modules"] == ["a", "b"]
    assert merged["layers_to_transform"] is None
    same = PLAIN | {"target_modules": {"v", "q"}}
    merged = merged_adapter_config([same, same], {"a": 1})
    assert merged["target_modules"] == ["q", "v"]


def test_refuses_to_merge_configs_that_do_not_fit():
    with pytest.raises(ValueError, match="must be an adapter to merge"):
        merged_adapter_config([], {"q": 4})
    with pytest.raises(ValueError, match=r"adapter 1 saves the modules \['head'\]"):
        merged_adapter_config([PLAIN, PLAIN | {"modules_to_save": ["head"]}], {"q": 4})
    with pytest.raises(ValueError, match="adapter 1: use_dora"):
        merged_adapter_config([PLAIN, PLAIN | {"use_dora": True}], {"q": 4})
