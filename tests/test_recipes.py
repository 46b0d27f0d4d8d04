"""The recipes that bring data and a model are run through, from the folder that holds them."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from recall_lightning.cli.main import main
from recall_lightning.data.instructions.templates import TEMPLATES

ROOT = Path(__file__).parent.parent
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


def fit(recipe, tmp_path, monkeypatch, *args):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["recall-lightning"])
    logger = f"--trainer.logger.init_args.save_dir={tmp_path}"
    main(["fit", "-c", f"recipes/{recipe}.yaml", logger, *SMALL, *args])
    return tmp_path / recipe / "version_0"


def test_the_five_tasks_are_trained_merged_exported_and_generated_from(
    tmp_path, monkeypatch, capsys
):
    shorter = ["--data.init_args.epochs_per_task=1", "--trainer.check_val_every_n_epoch=1"]
    shorter += ["--recall.every=0.5", "--recall.moments.batches=2"]
    folder = fit("five_tasks_tiny", tmp_path, monkeypatch, *shorter)
    record = json.loads((folder / "task_matrix.json").read_text())
    assert record["tasks"] == list(TEMPLATES)
    assert [len(row) for row in record["matrix"]] == [5] * 5
    assert record["probes"]["before"] == [1.0]  # the model can do one thing well
    (checkpoint,) = (folder / "checkpoints").glob("*.ckpt")
    for name, options in (("adapter", []), ("whole", ["--merge-adapter"])):
        main(["export", str(checkpoint), "--out", str(tmp_path / name), *options])
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        chat = [{"role": "user", "content": "Translate to French.\nEnglish: The sea.\nFrench:"}]
        prompt = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert len(model.generate(**prompt, max_new_tokens=4)[0]) > prompt["input_ids"].shape[1]
        assert "| after medmcqa |" in (tmp_path / name / "README.md").read_text()
    assert "recall on sst2 → squad_v2" in capsys.readouterr().out


def test_text_files_are_scored_in_bits_per_byte_beside_general_text(tmp_path, monkeypatch):
    shorter = ["--data.init_args.epochs_per_task=1", "--trainer.limit_train_batches=4"]
    folder = fit("text_files", tmp_path, monkeypatch, *shorter, "--recall.every=1.0")
    record = json.loads((folder / "task_matrix.json").read_text())
    assert (record["monitor"], record["probes"]["names"]) == ("val/bits_per_byte", ["general"])
    assert all(0 < score < 8 for row in record["matrix"] for score in row)
    assert "perplexity" in (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("big", ["llama2", "qwen2"])
def test_the_recipes_on_the_hub_are_the_tiny_one_but_for_model_and_data(big):
    sizes = {"max_length", "batch_size", "eval_batch_size", "num_workers", "epochs_per_task"}
    tiny, other = (
        yaml.safe_load((ROOT / f"recipes/five_tasks_{name}.yaml").read_text())["data"]["init_args"]
        for name in ("tiny", big)
    )
    assert set(tiny) ^ set(other) <= sizes | {"general"}
    assert [task["template"] for task in tiny["tasks"]] == [t["template"] for t in other["tasks"]]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+", task["data"]) for task in other["tasks"])
