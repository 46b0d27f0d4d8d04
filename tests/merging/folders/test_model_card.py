import json
import os
from pathlib import Path

import pytest
import yaml

from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from tests.support.tiny_models import checkpoint, llama, loaded, saved


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [saved(llama(i), folder / f"m{i}") for i in range(2)]


def merge(out, paths, **settings):
    merge_files(MergeSettings(paths, str(out), **settings))
    return out


def test_config_generation_config_and_tokenizer_come_from_the_donor(models, tmp_path):
    other = Path(saved(llama(3), tmp_path / "donor"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps(content | {"mark": "ü"}))
    first, named = merge(tmp_path / "1", models), merge(tmp_path / "2", models, donor=str(other))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert json.loads((named / name).read_text())["mark"] == "ü"
        assert json.loads((first / name).read_text()) == json.loads(
            Path(models[0], name).read_text()
        )
    assert (first / "tokenizer.json").read_bytes() == Path(models[0], "tokenizer.json").read_bytes()
    assert loaded(first).generation_config.max_new_tokens == 7


def test_an_older_name_of_the_dtype_is_kept(models, tmp_path):
    donor = Path(saved(llama(3), tmp_path / "donor"))
    config = json.loads((donor / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype", "float32")
    (donor / "config.json").write_text(json.dumps(config))
    out = merge(tmp_path / "out", models, donor=str(donor), out_dtype="float16")
    written = json.loads((out / "config.json").read_text())
    assert written["torch_dtype"] == "float16"
    assert "dtype" not in written


def test_the_card_shows_models_weights_and_settings(models, tmp_path):
    out = merge(tmp_path / "out", models, weights=[[0.25, 1], 1])
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "tags": ["merge", "linear"]}
    assert f"| 1 | `{models[0]}` |" in card
    recorded = json.loads((out / "coefficients.json").read_text())["blocks"]
    for block in recorded:
        cells = [f"{weight:.4f}" for weight in block["weights"]]
        assert "| " + " | ".join([f"`{block['name']}`", *cells]) + " |" in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings == yaml.safe_load((out / "merge.yaml").read_text())
    assert recorded[0]["weights"] == [0.2, 0.8]


def test_without_a_folder_there_is_no_config(tmp_path):
    ckpts = [checkpoint(llama(i), tmp_path / f"{i}.ckpt") for i in range(2)]
    out = merge(tmp_path / "out", ckpts)
    kept = {"README.md", "coefficients.json", "merge.yaml", "model.safetensors"}
    assert set(os.listdir(out)) == kept
