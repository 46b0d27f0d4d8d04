import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.merging.coefficients.kronecker import KroneckerCoefficient
from recall_lightning.merging.lora.config import AdapterConfig, merged_adapter_config
from recall_lightning.merging.lora.low_rank import LoraFactors, merge_lora
from recall_lightning.merging.lora.pairs import (
    LoraPair,
    adapter_pairs,
    find_lora_pairs,
    lerp_adapters_,
)
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=False,
        )
    )


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    )


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(3, 5, 3)
        self.plane = nn.Conv2d(3, 6, 3)
        self.dots = nn.Conv2d(6, 4, 1)


def adapted(model, seed=1, **settings):
    """A PEFT model whose adapter has been trained, as far as its weights show."""
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8} | settings
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


def deltas(model):
    """PEFT's own ΔW of every module, by the module's name in the base model."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            key = name.removeprefix("base_model.model.")
            found[key] = layer.get_delta_weight("default").detach()
    return found


def assert_deltas(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol)


def best_of_rank(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).float()


def merge_through_files(build, settings, weights, tmp_path, rank=None):
    """Save two adapters, merge their files, load the result; ΔW of the three."""
    inputs = []
    for index, own in enumerate(settings):
        model = adapted(build(), seed=index, **own)
        model.save_pretrained(tmp_path / str(index), save_embedding_layers=False)
        inputs.append(deltas(model))
    configs, tensors, pairs = [], [], []
    for folder in (tmp_path / "0", tmp_path / "1"):
        configs.append(json.loads((folder / "adapter_config.json").read_text()))
        tensors.append(load_file(folder / "adapter_model.safetensors"))
        found, rest = adapter_pairs(tensors[-1], AdapterConfig.read(configs[-1]))
        assert not rest
        pairs.append({pair.module: pair for pair in found})
    out, ranks = {}, {}
    for module in pairs[0] | pairs[1]:
        has = [i for i in (0, 1) if module in pairs[i]]
        factors = [pairs[i][module].factors(tensors[i]) for i in has]
        merged = merge_lora(factors, [weights[i] for i in has], rank)
        ranks[module] = merged.rank
        out |= pairs[has[0]][module].tensors(merged, tensors[has[0]])
    (tmp_path / "out").mkdir()
    save_file(out, tmp_path / "out" / "adapter_model.safetensors")
    config = json.dumps(merged_adapter_config(configs, ranks))
    (tmp_path / "out" / "adapter_config.json").write_text(config)
    loaded = peft.PeftModel.from_pretrained(build(), tmp_path / "out")
    return [*inputs, deltas(loaded)]


ATTENTION = ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (llama, [{"r": 3}, {"r": 5, "lora_alpha": 3}]),
        (llama, [{"use_rslora": True}, {"use_rslora": True, "r": 7}]),
        (
            llama,
            [
                {
                    "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"layers.\d.*v_proj": 6},
                    "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 5, "q_proj": 1},
                },
                {"r": 2},
            ],
        ),
        (llama, [{"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "down_proj"]}]),
        (llama, [{"target_modules": ["embed_tokens", "lm_head"], "r": r} for r in (2, 3)]),
        (gpt2, [{"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": r} for r in (2, 3)]),
        (Convolutions, [{"target_modules": ["line", "plane", "dots"], "r": r} for r in (1, 2)]),
        (
            lambda: nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)}),
            [{"target_modules": ["attention"], "r": r} for r in (1, 2)],
        ),
    ],
    ids=[
        "ranks",
        "rslora",
        "patterns",
        "modules",
        "embedding",
        "conv1d",
        "convolutions",
        "attention",
    ],
)
def test_merged_file_loads_as_the_weighted_sum(build, settings, tmp_path):
    first, second, merged = merge_through_files(build, settings, [0.7, 0.5], tmp_path)
    expected = {
        name: 0.7 * first.get(name, 0.0) + 0.5 * second.get(name, 0.0) for name in first | second
    }
    assert_deltas(merged, expected)


def test_merged_file_of_lower_rank_is_the_best_approximation(tmp_path):
    settings = [{"r": 4}, {"r": 3}]
    first, second, merged = merge_through_files(llama, settings, [0.5, 0.5], tmp_path, rank=4)
    expected = {n: best_of_rank(0.5 * first[n] + 0.5 * second[n], 4) for n in first}
    assert_deltas(merged, expected)


def test_agrees_with_pefts_own_svd():
    model = adapted(llama())
    model.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=8, target_modules=ATTENTION))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    weights = [0.6, 0.4]
    model.add_weighted_adapter(["default", "other"], weights, "merged", "svd", svd_rank=3)
    for pair in find_lora_pairs(model):
        layer = model.get_submodule(pair.module)
        factors = [
            LoraFactors(layer.lora_A[n].weight, layer.lora_B[n].weight, layer.scaling[n])
            for n in ("default", "other")
        ]
        ours = merge_lora(factors, weights, rank=3)
        theirs = layer.get_delta_weight("merged").detach()
        torch.testing.assert_close(ours.b @ ours.a, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (llama, {}),
        (llama, {"use_rslora": True, "target_modules": ["embed_tokens", "o_proj"]}),
        (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        (Convolutions, {"target_modules": ["line", "plane", "dots"]}),
    ],
)
def test_merge_in_training_is_the_best_update_of_the_live_rank(build, settings):
    model = adapted(build(), **settings)
    then, snapshot = deltas(model), Snapshot.take(model)
    for weight in named_weights(model).values():
        weight.data += 0.1 * torch.randn_like(weight)
    now, pairs = deltas(model), find_lora_pairs(model)
    assert {name for pair in pairs for name in (pair.a, pair.b)} == set(named_weights(model))
    weights = dict.fromkeys(snapshot, 0.3)
    discarded = lerp_adapters_(named_weights(model), [snapshot], [weights], pairs)
    expected = {}
    for name in now:
        full = (0.7 * now[name] + 0.3 * then[name]).flatten(1)
        expected[name] = best_of_rank(full, 4).reshape(now[name].shape)
        lost = 1 - expected[name].norm() ** 2 / full.norm() ** 2
        assert discarded[f"base_model.model.{name}"] == pytest.approx(float(lost), abs=1e-5)
    assert_deltas(deltas(model), expected)


def test_several_snapshots_are_merged_at_once():
    model = adapted(llama())
    updates, snapshots = [], []
    for _ in range(3):
        for weight in named_weights(model).values():
            weight.data += 0.1 * torch.randn_like(weight)
        updates.append(deltas(model))
        snapshots.append(Snapshot.take(model))
    weights = [dict.fromkeys(snapshots[0], share) for share in (0.2, 0.3)]
    lerp_adapters_(named_weights(model), snapshots[:2], weights, find_lora_pairs(model))
    shares = (0.2, 0.3, 0.5)
    expected = {
        name: best_of_rank(sum(w * u[name] for w, u in zip(shares, updates, strict=True)), 4)
        for name in updates[0]
    }
    assert_deltas(deltas(model), expected)


def of_rows(width, seed):
    rows = torch.randn(40, width, generator=torch.Generator().manual_seed(seed))
    return FullMoments(rows.T @ rows / 40, torch.ones(()))


@pytest.mark.parametrize("target", ["q_proj", "up_proj", "down_proj"])  # square, tall and flat
def test_a_matrix_of_both_sides_is_applied_to_the_whole_update(target):
    settings = {"target_modules": [target], "layers_to_transform": [0]}
    model, old = adapted(llama(), **settings), adapted(llama(), 7, **settings)
    snapshot = Snapshot.take(old)
    (pair,) = find_lora_pairs(model)
    (before,), (then,) = deltas(model).values(), deltas(old).values()
    rows, columns = before.shape
    linear_map = LinearMap(pair.a, None, "linear", ("",), columns, second_factor=pair.b)
    moments = [(of_rows(n, seed), of_rows(n, seed + 1)) for n, seed in ((columns, 0), (rows, 2))]
    taken = KroneckerCoefficient.between(linear_map, *moments, 2.0, (0.01, 0.1))
    weights = {pair.a: taken, pair.b: taken}
    discarded = lerp_adapters_(named_weights(model), [snapshot], [weights], [pair])
    whole = before + taken.pull(then - before)
    (merged,) = deltas(model).values()
    torch.testing.assert_close(merged, best_of_rank(whole, 4), rtol=0, atol=1e-5)
    lost = 1 - float(best_of_rank(whole, 4).square().sum() / whole.square().sum())
    assert discarded[pair.module] == pytest.approx(lost, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmoved_adapter_keeps_every_bit(dtype):
    model = adapted(llama()).to(dtype)
    before = Snapshot.take(model)
    lerp_adapters_(
        named_weights(model), [before], [dict.fromkeys(before, 0.4)], find_lora_pairs(model)
    )
    assert all(torch.equal(weight, before[n]) for n, weight in named_weights(model).items())


def test_fresh_embedding_adapter_keeps_its_random_side():
    settings = peft.LoraConfig(r=4, target_modules=["embed_tokens"])
    model = peft.get_peft_model(llama(), settings)  # A is zero, B random
    snapshot = Snapshot.take(model)
    (pair,) = find_lora_pairs(model)
    live = named_weights(model)
    live[pair.a].data.normal_()
    trained = live[pair.a].clone()
    lerp_adapters_(live, [snapshot], [{pair.a: 0.25}], [pair])
    torch.testing.assert_close(live[pair.b], snapshot[pair.b], atol=1e-5, rtol=0)
    torch.testing.assert_close(live[pair.a], 0.75 * trained, atol=1e-5, rtol=0)


def test_training_goes_on_after_a_merge_of_a_fresh_adapter():
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=ATTENTION))
    snapshot = Snapshot.take(model)
    live = named_weights(model)
    for weight in live.values():
        weight.data += 0.01 * torch.randn_like(weight)
    lerp_adapters_(live, [snapshot], [dict.fromkeys(live, 0.5)], find_lora_pairs(model))
    tokens = torch.arange(20).reshape(2, 10)
    model(input_ids=tokens, labels=tokens).loss.backward()
    for pair in find_lora_pairs(model):
        assert (live[pair.a].grad.norm(dim=1) + live[pair.b].grad.norm(dim=0) > 0).all()


def test_half_precision_is_rounded_once():
    model = adapted(llama()).to(torch.bfloat16)
    snapshot = Snapshot.take(model)
    live, pair = named_weights(model), find_lora_pairs(model)[0]
    live[pair.b].data += 0.1
    like, old = pair.factors(live), pair.factors(snapshot)
    exact = merge_lora([like, old], [0.5, 0.5], like=like)
    lerp_adapters_(live, [snapshot], [{pair.a: 0.5}], [pair])
    assert torch.equal(live[pair.a], exact.a.bfloat16())
    assert torch.equal(live[pair.b], exact.b.bfloat16())


def test_sharded_factors_are_gathered_and_sharded_again(tmp_path):
    model = adapted(llama())
    snapshot, pair = Snapshot.take(model), find_lora_pairs(model)[0]
    live = {name: named_weights(model)[name].detach() for name in (pair.a, pair.b)}
    live[pair.b] += 0.1
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        shard = [torch.distributed.tensor.Shard(0)]
        sharded = {
            name: torch.distributed.tensor.distribute_tensor(tensor.clone(), mesh, shard)
            for name, tensor in live.items()
        }
        lerp_adapters_(sharded, [snapshot], [{pair.a: 0.5}], [pair])
        whole = {name: tensor.full_tensor() for name, tensor in sharded.items()}
    finally:
        torch.distributed.destroy_process_group()
    lerp_adapters_(live, [snapshot], [{pair.a: 0.5}], [pair])
    assert all(torch.equal(whole[name], live[name]) for name in live)


def lerp_case(change):
    """Two pairs, the second spoiled by ``change``; the first must stay as it was."""
    pairs = [LoraPair(m, f"{m}.a", f"{m}.b", 1.0, 2) for m in "xy"]
    live = {f"{m}.{side}": torch.ones(2, 2) for m in "xy" for side in "ab"}
    snapshot = {name: torch.zeros(2, 2) for name in live}
    weights = dict.fromkeys(live, 0.5)
    change(live, snapshot, weights)
    return live, snapshot, weights, pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda live, then, w: then.pop("y.b"), "adapter must have the weight 'y.b'"),
        (lambda live, then, w: w.pop("y.a"), "'y.a' needs a merge weight"),
        (lambda live, then, w: w.update({"y.a": 1.5}), "'y.a' must be parts of 1"),
        (lambda live, then, w: w.update({"y.a": float("nan")}), "'y.a' must be parts of 1"),
        (lambda live, then, w: w.update({"y.a": torch.ones(2)}), "'y.a' needs one merge weight"),
        (lambda live, then, w: live["y.b"].fill_(torch.inf), "'y.b' holds NaN or infinite"),
        (lambda live, then, w: then.update({"y.a": torch.ones(3, 2)}), "'y' .* not the rank 2"),
        (lambda live, then, w: then.update({"y.a": torch.ones(2, 3)}), "'y': .* different shapes"),
        (
            lambda live, then, w: (
                live.update({"y.b": torch.full((2, 2), 6e4).half()}),
                then.update({"y.a": torch.ones(2, 2), "y.b": torch.full((2, 2), -1e9)}),
            ),
            "'y.b' infinite",
        ),
    ],
)
def test_refuses_to_merge_before_anything_is_written(change, message):
    live, snapshot, weights, pairs = lerp_case(change)
    with pytest.raises(ValueError, match=message):
        lerp_adapters_(live, [snapshot], [weights], pairs)
    assert (live["x.a"] == 1).all()


def test_finds_no_pairs_without_peft(monkeypatch):
    model = adapted(llama())
    assert len(find_lora_pairs(model)) == 4
    assert find_lora_pairs(llama()) == []
    monkeypatch.delitem(sys.modules, "peft")
    assert find_lora_pairs(model) == []


def test_pairs_lie_inside_any_module():
    wrapper = nn.ModuleDict({"inner": torch.compile(adapted(llama()))})
    pair = find_lora_pairs(wrapper)[0]
    module = "inner.base_model.model.model.layers.0.self_attn.q_proj"
    assert pair == LoraPair(
        module, f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight", 2.0, 4
    )


def test_weights_outside_of_the_adapter_are_no_pairs():
    model = adapted(llama(), modules_to_save=["lm_head"])
    factors = {name for pair in find_lora_pairs(model) for name in (pair.a, pair.b)}
    rest = [name for name in named_weights(model) if name not in factors]
    assert rest == ["base_model.model.lm_head.modules_to_save.default.weight"]


def test_update_with_a_frozen_factor_is_merged_as_plain_weights():
    model = adapted(llama())
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    assert find_lora_pairs(model) == []


def test_frozen_adapters_are_passed_over():
    model = adapted(llama())
    model.merge_adapter()
    assert find_lora_pairs(model.requires_grad_(False)) == []


def spoil(model, how):
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    if how == "merged":
        layer.merge()
    elif how == "two active":
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=ATTENTION))
        model.base_model.set_adapter(["default", "other"])
    elif how == "quantised":
        layer.base_layer.weight = nn.Parameter(
            layer.base_layer.weight.to(torch.float8_e4m3fn), requires_grad=False
        )
    elif how == "quantised layer":
        layer.__class__ = type("Linear4bit", (type(layer),), {})
    elif how == "tied":
        first = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        layer.lora_A["default"].weight = nn.Parameter(first.lora_A["default"].weight.detach())
    return model


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("merged", r"layers.1.self_attn.q_proj' \(Linear\) is merged into its base"),
        ("two active", "active adapters .'default', 'other'."),
        ("quantised", "quantised to torch.float8_e4m3fn"),
        ("quantised layer", r"\(Linear4bit\) .* base is quantised by"),
        ("tied", "layers.0.self_attn.q_proj.lora_A.default.weight' is one tensor for 2 modules"),
    ],
)
def test_refuses_layers_by_name(how, message):
    with pytest.raises(ValueError, match=message):
        find_lora_pairs(spoil(adapted(llama()), how))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "mica"}, "MiCA"),
    ],
)
def test_refuses_variants_in_a_model(settings, message):
    with pytest.raises(ValueError, match=message):
        find_lora_pairs(adapted(llama(), **settings))


def test_refuses_other_tuners_in_a_model():
    model = peft.get_peft_model(llama(), peft.LoHaConfig(r=2, target_modules=ATTENTION))
    with pytest.raises(ValueError, match="no plain LoRA layer"):
        find_lora_pairs(model)


def test_file_tensors_are_paired_by_name():
    names = [
        "base_model.model.embed.lora_embedding_B",
        "base_model.model.embed.lora_embedding_A",
        "base_model.model.lora_head.weight",
        "base_model.model.l.0.q.lora_A.weight",
        "base_model.model.l.0.q.lora_B.weight",
    ]
    pairs, rest = adapter_pairs(names, AdapterConfig(4, 2, rank_pattern={"q": 8}))
    assert pairs == [
        LoraPair("embed", names[1], names[0], 0.5, 4, embedding=True),
        LoraPair("l.0.q", names[3], names[4], 0.25, 8),
    ]
    assert rest == [names[2]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q.lora_A.weight", "here: the factor 'q.lora_A.weight' lacks"),
        ("q.lora_magnitude_vector.weight", "here: .* of a plain LoRA"),
        ("q.lora_B.bias", "here: .* of a plain LoRA"),
        ("q.lora_A.default.weight", "here: .* of a plain LoRA"),
    ],
)
def test_refuses_file_tensors_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        adapter_pairs([name], AdapterConfig(4, 2), "here")
