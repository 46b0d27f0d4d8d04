import json
import shutil
from pathlib import Path

import pytest
import torch

from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from tests.support.tiny_models import checkpoint, llama, saved


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return saved(llama(0), tmp_path_factory.mktemp("model") / "a")


def edited(path, folder, name, change):
    """Copy a model's folder, one of its JSON files changed in place by a function."""
    shutil.copytree(path, folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(params=["config", "tokenizer"])
def other(path, tmp_path, request):
    """A folder of the same shapes that means something else, and what is said of it."""
    if request.param == "config":
        heads = saved(llama(1, num_attention_heads=4), tmp_path / "other")
        return heads, "other and .*a have .* num_attention_heads is 4 and not 2"

    def swap(content):
        words = content["model"]["vocab"]
        words["w2"], words["w3"] = words["w3"], words["w2"]

    said = "other and .*a read text differently: 2 of their ids .* 2 for 'w3' and not 'w2'"
    return edited(path, tmp_path / "other", "tokenizer.json", swap), said


def refused(match, tmp_path, models, **settings):
    with pytest.raises(ValueError, match=f"{match}.*--allow-different-configs") as caught:
        merge_files(MergeSettings(models, tmp_path / "out", **settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_a_base_a_donor_and_a_file_of_a_folder_are_compared(path, other, tmp_path):
    other, said = other
    refused(said, tmp_path, [path, other])
    refused(said, tmp_path, [path, path, other])
    refused(said, tmp_path, [path, path], method="ties", base=other, options={"density": 0.5})
    refused("a and .*other", tmp_path, [path, path], donor=other)
    refused("model.safetensors and", tmp_path, [path, f"{other}/model.safetensors"])


def test_the_user_may_insist(path, other, tmp_path):
    settings = MergeSettings([path, other[0]], tmp_path / "out", allow_different_configs=True)
    merge_files(settings)
    assert settings.flat()["allow_different_configs"] is True
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_attention_heads"] == 2


def test_a_checkpoint_of_a_model_from_a_config_is_compared(path, tmp_path):
    for i, heads in enumerate((2, 4)):
        file = checkpoint(llama(i, num_attention_heads=heads), tmp_path / f"{i}.ckpt")
        config = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": heads}
        torch.save(torch.load(file) | {"causal_lm": {"model": config, "lora": None}}, file)
    models = [str(tmp_path / f"{i}.ckpt") for i in range(2)]
    refused("num_attention_heads is 4 and not 2", tmp_path, models)


def test_what_checkpoints_were_trained_from_is_compared(path, other, tmp_path):
    other, said = other
    for name, folder in (("0", path), ("1", other)):
        file = checkpoint(llama(0), tmp_path / f"{name}.ckpt")
        about = {"model": folder, "tokenizer": folder, "lora": None}
        torch.save(torch.load(file) | {"causal_lm": about}, file)
    said = said.replace("other", "1.ckpt").replace("a ", "0.ckpt ")
    refused(said, tmp_path, [str(tmp_path / f"{i}.ckpt") for i in range(2)])
    refused(said.replace("0.ckpt", "a"), tmp_path, [path, str(tmp_path / "1.ckpt")])


def test_code_that_models_bring_along_is_compared(path, tmp_path):
    def names_code(config):
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}

    for name, code in (("x", "scale = 1"), ("y", "scale = 1"), ("z", "scale = 2")):
        edited(path, tmp_path / name, "config.json", names_code)
        (tmp_path / name / "modeling_own.py").write_text(code)
    merge_files(MergeSettings([tmp_path / "x", tmp_path / "y"], tmp_path / "same"))
    refused("their modeling_own.py differ", tmp_path, [tmp_path / "x", tmp_path / "z"])


def test_models_that_say_nothing_are_merged(path, tmp_path):
    files = [
        shutil.copy(Path(path, "model.safetensors"), tmp_path / f"{i}.safetensors") for i in (0, 1)
    ]
    merge_files(MergeSettings([path, *files], tmp_path / "out"))


@pytest.mark.parametrize("value", [1, "yes", None])
def test_insisting_is_true_or_false(value):
    with pytest.raises(ValueError, match=r"allow_different_configs=.* must be true or false"):
        MergeSettings(["a", "b"], "out", allow_different_configs=value)
