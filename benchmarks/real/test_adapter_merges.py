import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from benchmarks.real.adapter_merges import (
    COMBINATIONS,
    SaveTaskAdapters,
    adapters_in,
    merged_scores,
    use_merged_adapter,
)
from recall_lightning.merging.lora.pairs import find_lora_pairs
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from recall_lightning.weights.naming import find_weights

TINY = {"model_type": "llama", "vocab_size": 16, "hidden_size": 16, "intermediate_size": 32}
TINY |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


def counting(step):
    """Sequences that count up by a step."""
    return (torch.arange(16)[:, None] + step * torch.arange(8)) % 16


def loss_of(module, step):
    ids = counting(step)
    with torch.no_grad():
        return module.model(input_ids=ids, labels=ids).loss.item()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The module after two tasks, the folders of its adapters, and its loss after each."""
    torch.manual_seed(0)
    folder, losses = tmp_path_factory.mktemp("adapters"), []
    saver = SaveTaskAdapters(folder)
    lora = LoraSettings(r=4, alpha=8, target_modules="all-linear")
    module = CausalLMModule(TINY, lambda params: torch.optim.Adam(params, 1e-2), lora=lora)
    for step in (3, 5):
        rows = [{"input_ids": row, "labels": row} for row in counting(step)]
        Trainer(
            callbacks=[saver],
            max_epochs=8,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        ).fit(module, DataLoader(rows, batch_size=8))
        losses.append(loss_of(module, 3))
    return module, adapters_in(folder), losses


def updates(module):
    pairs = find_lora_pairs(module)
    tensors = find_weights(module, [name for pair in pairs for name in (pair.a, pair.b)])
    return {p.module: p.scale * tensors[p.b] @ tensors[p.a] for p in pairs}


def test_each_tasks_adapter_is_saved(trained):
    module, folders, losses = trained
    assert [folder.name for folder in folders] == ["task_0", "task_1"]
    for folder, loss in zip(folders, losses, strict=True):
        own = copy.deepcopy(module)
        use_merged_adapter(own.model, [folder], "svd")
        assert loss_of(own, 3) == pytest.approx(loss, rel=1e-3)


def test_svd_is_the_mean_of_the_updates_as_far_as_the_rank_goes(trained):
    module, folders, _ = trained
    each = []
    for folder in folders:
        own = copy.deepcopy(module)
        use_merged_adapter(own.model, [folder], "svd")
        each.append(updates(own))
    merged = copy.deepcopy(module)
    use_merged_adapter(merged.model, folders, "svd")
    for name, update in updates(merged).items():
        u, s, v = torch.linalg.svd((each[0][name] + each[1][name]) / 2)
        best = u[:, :4] * s[:4] @ v[:4]
        torch.testing.assert_close(update, best, atol=1e-4, rtol=1e-3)


def test_every_merge_is_evaluated_and_the_model_left_as_it_was(trained):
    module, folders, losses = trained
    own = copy.deepcopy(module)

    def evaluate():
        assert own.model.active_adapters == ["merged"]
        return loss_of(own, 3)

    scores = merged_scores(own.model, folders, evaluate, density=0.5)
    assert list(scores) == list(COMBINATIONS)
    assert len({*scores.values(), *losses}) == len(COMBINATIONS) + 2
    assert loss_of(own, 3) == losses[-1]
    assert list(own.model.peft_config) == ["default"]


def test_others_are_refused(trained):
    with pytest.raises(ValueError, match="combination='slerp' is unknown"):
        use_merged_adapter(trained[0].model, [], "slerp")
