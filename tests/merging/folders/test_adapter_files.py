import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from recall_lightning.export.folder import export
from recall_lightning.merging.folders.inputs import open_models
from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings, ProbeSettings
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from tests.support.tiny_models import SENTENCES, bits_equal, llama, loaded, saved, tensors

LORA = LoraSettings(r=2, alpha=8, target_modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(llama(0), tmp_path_factory.mktemp("base") / "base")


def checkpoint(base, file, seed, lora=LORA):
    """Save a checkpoint as a Trainer does, of an adapter whose weights are all random."""
    module = CausalLMModule(base, lora=lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    held = {"state_dict": module.state_dict(), "global_step": 1, "epoch": 0}
    module.on_save_checkpoint(held)
    torch.save(held, file)
    return str(file)


def merge(out, paths, **settings):
    return merge_files(MergeSettings([str(path) for path in paths], str(out), **settings))


@pytest.mark.parametrize(
    "lora",
    [LORA, replace(LORA, modules_to_save=["norm"]), replace(LORA, target_modules="all-linear")],
)
def test_checkpoints_of_adapters_are_merged_as_their_exported_folders_are(base, tmp_path, lora):
    for seed, name in enumerate("ab"):
        export(checkpoint(base, tmp_path / f"{name}.ckpt", seed, lora), tmp_path / name)
    merge(tmp_path / "files", [tmp_path / "a.ckpt", tmp_path / "b.ckpt"], weights=[0.75, 0.25])
    merge(tmp_path / "folders", [tmp_path / "a", tmp_path / "b"], weights=[0.75, 0.25])
    assert bits_equal(tensors(tmp_path / "files"), tensors(tmp_path / "folders"))
    merge(tmp_path / "both", [tmp_path / "a.ckpt", tmp_path / "b"], weights=[0.75, 0.25])
    assert bits_equal(tensors(tmp_path / "both"), tensors(tmp_path / "folders"))
    config = json.loads((tmp_path / "files" / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == 1
    assert config["base_model_name_or_path"] == base
    with torch.no_grad():
        first, second = (
            PeftModel.from_pretrained(loaded(base), tmp_path / out)(torch.arange(6)[None]).logits
            for out in ("files", "folders")
        )
    assert torch.equal(first, second)


def test_the_merged_update_is_the_mean_of_the_updates(base, tmp_path):
    paths = [checkpoint(base, tmp_path / f"{seed}.ckpt", seed) for seed in range(2)]
    merge(tmp_path / "out", paths, rank="sum")

    def updates(held, scale):
        return [
            scale * held[name.replace("lora_A", "lora_B")].double() @ tensor.double()
            for name, tensor in held.items()
            if "lora_A" in name
        ]

    each = [updates(torch.load(path)["state_dict"], 8 / 2) for path in paths]
    found = updates(load_file(tmp_path / "out" / "adapter_model.safetensors"), 1)
    for merged, first, second in zip(found, *each, strict=True):
        torch.testing.assert_close(merged, (first + second) / 2, atol=1e-5, rtol=1e-5)


def refused(match, paths, folder, **settings):
    with pytest.raises(ValueError, match=match) as caught:
        merge(folder / "out", paths, **settings)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_factors_without_what_tells_their_scale_are_refused(base, tmp_path):
    export(checkpoint(base, tmp_path / "a.ckpt", 0), tmp_path / "a")
    bare = tmp_path / "a" / "adapter_model.safetensors"
    refused(
        "holds an adapter, such as .*lora_A.*tells its scale: give its folder$",
        [bare] * 2,
        tmp_path,
    )
    for name in ("moved.safetensors", "moved.bin"):
        shutil.copy(bare, tmp_path / name)
        refused(
            "save it by PEFT's save_pretrained and give its folder", [tmp_path / name] * 2, tmp_path
        )
    held = torch.load(tmp_path / "a.ckpt")
    torch.save({"state_dict": held["state_dict"]}, tmp_path / "plain.ckpt")
    refused("plain.ckpt holds an adapter", [tmp_path / "plain.ckpt"] * 2, tmp_path)


def test_an_adapter_among_models_is_refused_wherever_it_is(base, tmp_path):
    ckpt = checkpoint(base, tmp_path / "a.ckpt", 0)
    refused("a.ckpt is an adapter and another model is not", [base, ckpt], tmp_path)
    folder = tmp_path / "folder"  # a model's folder with an adapted model's weights
    shutil.copytree(base, folder)
    model = get_peft_model(loaded(base), LoraConfig(target_modules=["q_proj"]))
    save_file(model.state_dict(), folder / "model.safetensors")
    refused("folder holds an adapter.*merge_and_unload", [folder, base], tmp_path)


def test_a_base_that_lies_in_the_checkpoint_is_not_left_out(base, tmp_path):
    paths = [
        checkpoint(base, tmp_path / f"{i}.ckpt", i, replace(LORA, fresh_per_task=True))
        for i in range(2)
    ]
    refused("export .*0.ckpt --out DIR --merge-adapter makes a model", paths, tmp_path)


def test_checkpoints_of_other_bases_of_one_name_are_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    first = checkpoint(str(tmp_path / "base"), tmp_path / "0.ckpt", 0)
    saved(llama(1), tmp_path / "base")
    second = checkpoint(str(tmp_path / "base"), tmp_path / "1.ckpt", 1)
    refused(
        "1.ckpt and .*0.ckpt adapt .*base, whose weights were others", [first, second], tmp_path
    )


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], use_dora=True),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        VeraConfig(target_modules=["q_proj"], r=2),
    ],
)
def test_other_adapters_are_refused_in_folders_and_in_files(base, tmp_path, config):
    model = get_peft_model(loaded(base), config)
    model.save_pretrained(tmp_path / "a")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    refused(
        "adapter_config.json: .*(must be LORA|cannot be merged)", [tmp_path / "a"] * 2, tmp_path
    )
    refused("a.ckpt holds an adapter", [tmp_path / "a.ckpt"] * 2, tmp_path)
    file = tmp_path / "a" / "adapter_config.json"  # one that lies about its content
    file.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    refused("must be of a plain LoRA adapter", [tmp_path / "a"] * 2, tmp_path)


def test_an_adapter_in_a_checkpoint_cannot_be_measured(base, tmp_path):
    ckpt = checkpoint(base, tmp_path / "a.ckpt", 0)
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    probe = ProbeSettings(tmp_path / "texts.txt")
    match = "in a checkpoint: give the folder that recall-lightning export writes"
    refused(match, [ckpt] * 2, tmp_path, method="recall", probe=probe)


@pytest.mark.parametrize("name", ["blocks.0.lora_head.weight", "h.0.w_lora.lora.0.weight"])
def test_layers_that_are_only_called_alike_are_merged(tmp_path, name):
    save_file({name: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    [model] = open_models([tmp_path / "a.safetensors"], None)
    assert model.kind == "safetensors"
