import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings, ProbeSettings
from tests.support.tiny_models import SENTENCES, llama, loaded, saved, tensors

ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(llama(0), tmp_path_factory.mktemp("base"))


def adapter(base, folder, seed, **config):
    """Save a random adapter whose two factors are both nonzero."""
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    model = get_peft_model(loaded(base), LoraConfig(**settings | config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    model.save_pretrained(folder)
    return str(folder)


def merge(out, paths, **settings):
    return merge_files(MergeSettings(paths, str(out), **settings))


def change(base, path):
    """The merged base's weights minus the base's: what an adapter adds, by peft alone."""
    before = {n: t.double() for n, t in loaded(base).state_dict().items()}
    model = PeftModel.from_pretrained(loaded(base).double(), path).double().merge_and_unload()
    return {n: t.double() - before[n] for n, t in model.state_dict().items()}


def weighted(base, paths, weights):
    changes = [change(base, path) for path in paths]
    return {n: sum(w * c[n] for w, c in zip(weights, changes, strict=True)) for n in changes[0]}


def agrees(found, expected, tolerance=1e-6):
    return all(torch.allclose(found[n], t, atol=tolerance, rtol=0) for n, t in expected.items())


@pytest.mark.parametrize("ranks", [(2, 2), (2, 3)])
def test_a_sum_of_ranks_is_exact(base, tmp_path, ranks):
    options = [{}, {"use_rslora": True, "lora_alpha": 3}]
    paths = [
        adapter(base, tmp_path / str(i), i, r=rank, **options[i]) for i, rank in enumerate(ranks)
    ]
    report = merge(tmp_path / "out", paths, weights=[0.75, 0.25], rank="sum")
    assert agrees(change(base, tmp_path / "out"), weighted(base, paths, [0.75, 0.25]))
    assert set(report.discarded_energy.values()) == {0.0}
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in held.items() if "lora_A" in n} == {sum(ranks)}


def test_the_largest_rank_is_the_default_and_what_it_loses_is_reported(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i, r=2 + i) for i in range(2)]
    report = merge(tmp_path / "out", paths)
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in held.items() if "lora_A" in n} == {3}
    found, exact = change(base, tmp_path / "out"), weighted(base, paths, [0.5, 0.5])
    recorded = json.loads((tmp_path / "out" / "coefficients.json").read_text())["discarded_energy"]
    for module, lost in report.discarded_energy.items():
        name = f"{module}.weight"
        left = torch.linalg.svdvals(exact[name])[3:].square().sum()
        assert lost == pytest.approx(float(left / exact[name].square().sum()), rel=1e-3)
        assert (found[name] - exact[name]).square().sum() == pytest.approx(float(left), rel=1e-3)
        assert recorded[module] == lost > 0
    assert "discarded" in (tmp_path / "out" / "README.md").read_text()


def test_merging_an_adapter_with_itself_returns_its_update(base, tmp_path):
    path = adapter(base, tmp_path / "a", 0)
    merge(tmp_path / "out", [path, path])
    assert agrees(change(base, tmp_path / "out"), change(base, path))


def test_a_module_in_one_adapter_only_counts_as_zero_in_the_other(base, tmp_path):
    paths = [
        adapter(base, tmp_path / "a", 0),
        adapter(base, tmp_path / "b", 1, target_modules=["q_proj", "up_proj"]),
    ]
    merge(tmp_path / "out", paths, weights=[0.75, 0.25], rank="sum")
    assert agrees(change(base, tmp_path / "out"), weighted(base, paths, [0.75, 0.25]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_modules_are_averaged_and_their_integers_copied(base, tmp_path, dtype):
    paths = [adapter(base, tmp_path / str(i), i, modules_to_save=["norm"]) for i in range(2)]
    name = "base_model.model.model.norm.weight"
    for i, path in enumerate(paths):
        held = load_file(f"{path}/adapter_model.safetensors")
        held[name] = held[name].to(dtype)
        count = {"base_model.model.model.norm.count": torch.tensor(5 + i)}
        save_file(held | count, f"{path}/adapter_model.safetensors")
    merge(tmp_path / "out", paths, out_dtype=str(dtype).removeprefix("torch."))
    found, first, second = (tensors(path) for path in (tmp_path / "out", *paths))
    mean = (first[name].double() + second[name].double()) / 2
    assert torch.equal(found[name], mean.to(dtype))
    assert found["base_model.model.model.norm.count"] == 5
    assert found["base_model.model.model.norm.count"].dtype == torch.int64
    PeftModel.from_pretrained(loaded(base), tmp_path / "out")


def test_weights_over_depth_reach_their_adapters(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    merge(tmp_path / "out", paths, weights=[[1, 0], [0, 1]])
    found, first, second = (change(base, path) for path in (tmp_path / "out", *paths))
    for name in ("self_attn.q_proj.weight", "self_attn.v_proj.weight"):
        for layer, expected in enumerate((first, second)):
            key = f"model.layers.{layer}.{name}"
            assert torch.allclose(found[key], expected[key], atol=1e-6)


def test_recall_measures_adapters_on_their_base(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    probe = ProbeSettings(str(tmp_path / "texts.txt"))
    report = merge(tmp_path / "out", paths, method="recall", probe=probe, rank="sum")
    shares = report.weights[0]
    assert [name.removeprefix("base_model.model.") for name in shares] == [
        "model.layers.0",
        "model.layers.1",
    ]
    assert all(0.26 < share < 0.5 for share in shares.values())
    found, first, second = (change(base, path) for path in (tmp_path / "out", *paths))
    for layer, share in enumerate(shares.values()):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        expected = share * first[name] + (1 - share) * second[name]
        assert torch.allclose(found[name], expected, atol=1e-6)


def test_an_out_dtype_is_that_of_the_factors(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    merge(tmp_path / "out", paths, out_dtype="bfloat16")
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}


# what is wrong: one sentence, and nothing is left


def refused(tmp_path, match, paths, **settings):
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=match) as caught:
        merge(tmp_path / "out", paths, **settings)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def edited(path, **changes):
    file = Path(path, "adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def test_another_base_is_refused_unless_it_is_given(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    edited(paths[1], base_model_name_or_path="elsewhere/model")
    refused(tmp_path, "1 adapts elsewhere/model and .*0 adapts .*: give base", paths)
    merge(tmp_path / "out", paths, base=base)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base


def test_adapters_and_full_models_are_not_mixed(base, tmp_path):
    refused(tmp_path, "is an adapter and another", [adapter(base, tmp_path / "a", 0), base])


def test_methods_on_full_weights_are_refused(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    refused(tmp_path, "slerp works on full weights and .*0 is an adapter", paths, method="slerp")


def test_other_kinds_of_adapters_are_refused(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    edited(paths[1], use_dora=True)
    refused(tmp_path, "1/adapter_config.json: use_dora=True cannot be merged", paths)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rank_pattern", {"(": 1}),
        ("rank_pattern", 3),
        ("alpha_pattern", [1]),
        ("modules_to_save", True),
        ("modules_to_save", [1, "a"]),
    ],
)
def test_settings_of_another_kind_are_refused(base, tmp_path, setting, value):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    edited(paths[1], **{setting: value})
    refused(tmp_path, f"1/adapter_config.json: {setting}=.* must ", paths)


def test_different_whole_modules_are_refused(base, tmp_path):
    paths = [
        adapter(base, tmp_path / "0", 0),
        adapter(base, tmp_path / "1", 1, modules_to_save=["norm"]),
    ]
    refused(tmp_path, "1 and .*0 save different whole modules .*norm.weight", paths)


def test_whole_modules_of_other_shapes_are_refused(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i, modules_to_save=["norm"]) for i in range(2)]
    held = load_file(f"{paths[1]}/adapter_model.safetensors")
    held["base_model.model.model.norm.weight"] = torch.ones(3)
    save_file(held, f"{paths[1]}/adapter_model.safetensors")
    refused(tmp_path, r"1 does not fit .*0: .*norm.weight' is \(3,\) and not \(16,\)", paths)


def test_a_nan_is_named_with_its_file(base, tmp_path):
    paths = [adapter(base, tmp_path / str(i), i) for i in range(2)]
    held = load_file(f"{paths[1]}/adapter_model.safetensors")
    next(iter(held.values()))[0, 0] = torch.nan
    save_file(held, f"{paths[1]}/adapter_model.safetensors")
    refused(tmp_path, r"/1: the weight '.*lora_A.weight' holds NaN", paths)


def test_factors_that_are_no_matrices_are_named(base, tmp_path):
    path = adapter(base, tmp_path / "a", 0)
    held = load_file(f"{path}/adapter_model.safetensors")
    save_file({name: torch.tensor(1.0) for name in held}, f"{path}/adapter_model.safetensors")
    refused(tmp_path, "a must hold matrices for 'model.layers.0.self_attn.q_proj'", [path, path])


def test_what_float16_cannot_hold_is_refused(base, tmp_path):
    path = adapter(base, tmp_path / "a", 0, lora_alpha=10**12)
    refused(tmp_path, r"exceeds torch.float16", [path, path], out_dtype="float16")


def test_updates_of_other_shapes_name_their_module(base, tmp_path):
    other = saved(llama(1, hidden_size=32), tmp_path / "other")
    paths = [adapter(base, tmp_path / "0", 0), adapter(other, tmp_path / "1", 1)]
    for path in paths:
        edited(path, base_model_name_or_path="one")
    refused(tmp_path, "q_proj.*different shapes", paths)


def test_an_unknown_base_cannot_be_measured(base, tmp_path):
    paths = [
        edited(adapter(base, tmp_path / str(i), i), base_model_name_or_path=None) for i in (0, 1)
    ]
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    probe = ProbeSettings(str(tmp_path / "texts.txt"))
    refused(
        tmp_path,
        "does not say which model it adapts: give base",
        paths,
        method="recall",
        probe=probe,
    )
