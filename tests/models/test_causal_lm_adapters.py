"""Adapters, scores and schedules of CausalLMModule, on a tiny model from disk."""

import json
import sys
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import InstructionStream, InstructionTask, Template
from recall_lightning.merging.rules import Uniform
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from tests.support.tiny_language_model import save_model
from tests.support.training import quiet_trainer

CHOOSE = Template("{q}", choices=("yes", "no"), label="label")
WRITE = Template("{q}", "{a}", score="f1", max_new_tokens=6)
TRANSLATE = Template("{q}", "{a}", score="bleu", max_new_tokens=6)


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path)
    rows = [
        {"q": f"is {n} even?", "a": "yes" if n % 2 else "no", "label": n % 2} for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def stream(folder, *templates):
    rows = str(folder / "rows.jsonl")
    tasks = [InstructionTask(f"task {i}", t, rows, rows) for i, t in enumerate(templates)]
    return InstructionStream(tasks, str(folder), max_length=48, batch_size=4)


def module(folder, lr=1e-2, **kwargs):
    torch.manual_seed(0)
    return CausalLMModule(str(folder), lambda params: torch.optim.AdamW(params, lr=lr), **kwargs)


def fit(model, data, *callbacks, checkpoint=None, **kwargs):
    trainer = quiet_trainer(
        *callbacks, max_epochs=data.total_epochs, reload_dataloaders_every_n_epochs=1, **kwargs
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    return trainer


def plain_recall():
    """Return a callback that merges and measures nothing for it."""
    return RecallCallback(rule=Uniform(0.2), every=2, plasticity=None)


LORA = LoraSettings(r=4, alpha=8, target_modules="all-linear")


@pytest.mark.parametrize("lora", [None, LORA])
def test_every_kind_of_answer_is_scored_in_one_matrix(folder, lora):
    data, monitor = stream(folder, CHOOSE, WRITE, TRANSLATE), ForgettingMonitor("val/score")
    fit(module(folder, lora=lora), data, plain_recall(), monitor)
    assert len(monitor.matrix) == 3
    assert all(0 <= score <= 1 for row in monitor.matrix for score in row)


def test_a_task_that_is_learned_scores_one(folder):
    data, monitor = stream(folder, WRITE), ForgettingMonitor("val/score")
    data._epochs_per_task = 60
    fit(module(folder), data, monitor, check_val_every_n_epoch=60)
    assert monitor.matrix[-1] == [1.0]


def test_a_checkpoint_of_an_adapter_holds_the_adapter_alone_and_resumes(folder):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(folder / "middle.ckpt")

    whole = module(folder, lora=LORA)
    fit(whole, stream(folder, CHOOSE, WRITE), RecallCallback(every=2), Saves())
    saved = torch.load(folder / "middle.ckpt", weights_only=True)
    trained = {name for name, weight in whole.named_parameters() if weight.requires_grad}
    assert set(saved["state_dict"]) == trained
    resumed = module(folder, lora=LORA)
    data = stream(folder, CHOOSE, WRITE)
    fit(resumed, data, RecallCallback(every=2), checkpoint=folder / "middle.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_snapshot_is_as_large_as_the_adapter(folder):
    recall, model = plain_recall(), module(folder, lora=LORA)
    fit(model, stream(folder, CHOOSE), recall)
    adapter = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert recall.snapshots[0].nbytes == adapter


def test_an_adapter_of_another_base_is_refused(folder, tmp_path_factory):
    trainer = fit(module(folder, lora=LORA), stream(folder, CHOOSE))
    trainer.save_checkpoint(folder / "a.ckpt")
    other = tmp_path_factory.mktemp("other")
    save_model(other, num_hidden_layers=1)
    with pytest.raises(MisconfigurationException, match="adapter of another base"):
        fit(module(other, lora=LORA), stream(folder, CHOOSE), checkpoint=folder / "a.ckpt")


def test_a_fresh_adapter_a_task_leaves_the_function_as_it_was(folder):
    class Watches(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            logits.append(pl_module.eval()(ids).logits)
            pl_module.train()

        def on_validation_start(self, trainer, pl_module):
            logits.append(pl_module(ids).logits)

    logits, ids = [], torch.arange(2, 12)[None]
    model = module(folder, lora=LoraSettings(r=4, target_modules="all-linear", fresh_per_task=True))
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        fit(model, stream(folder, CHOOSE, WRITE), Watches())
    updated = [
        n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])
    ]
    assert updated
    assert all(not p.any() for n, p in model.named_parameters() if "lora_B" in n)
    torch.testing.assert_close(logits[-1], logits[-2], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_weight(folder):
    plain, checkpointed = (module(folder, gradient_checkpointing=on) for on in (False, True))
    for model in (plain, checkpointed):
        fit(model, stream(folder, WRITE))
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(checkpointed.state_dict()[name], weight)


@pytest.mark.parametrize(("over", "starts"), [("task", 2), ("stream", 1)])
def test_the_learning_rate_warms_up_and_decays_over_each_task_or_once(folder, over, starts):
    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    rates = []
    fit(module(folder, schedule=over, warmup=0.4), stream(folder, WRITE, WRITE), Rates())
    rises = [later > earlier for earlier, later in pairwise(rates)]
    assert max(rates) <= 1e-2
    turns = sum(a and not b for a, b in pairwise(rises))
    assert turns == starts
    assert rates[-1] < 0.4 * max(rates)


def test_norms_are_not_decayed_if_asked_to(folder):
    optimizer = module(folder, decay_norms_and_biases=False).configure_optimizers()
    decayed, flat = optimizer.param_groups
    assert flat["weight_decay"] == 0 < decayed["weight_decay"]
    assert {p.dim() for p in flat["params"]} == {1}


def test_layers_that_are_not_there_are_named(folder):
    with pytest.raises(MisconfigurationException, match=r"does not fit the model.*nowhere"):
        module(folder, lora=LoraSettings(target_modules=["nowhere"]))


def test_an_adapter_on_a_base_in_4_bits_is_trained_merged_and_resumes(folder):
    pytest.importorskip("bitsandbytes")
    save_model(folder, hidden_size=128, intermediate_size=256)
    data, recall = stream(folder, CHOOSE, WRITE), RecallCallback(every=1.0)
    model = module(folder, lora=LORA, load_in_4bit=True)
    trainer = fit(model, data, recall)
    assert {"Linear4bit"} == {type(layer.base_layer).__name__ for layer in adapted_layers(model)}
    assert [merge["task"] for merge in recall.history] == [0, 1]
    assert all("lora_" in name for name in recall.snapshots[-1])
    trainer.save_checkpoint(folder / "end.ckpt")
    again = module(folder, lora=LORA, load_in_4bit=True)
    fit(
        again,
        stream(folder, CHOOSE, WRITE),
        RecallCallback(every=1.0),
        checkpoint=folder / "end.ckpt",
    )
    for name, weight in again.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weight, model.get_parameter(name))


def adapted_layers(model):
    return [layer for layer in model.modules() if hasattr(layer, "lora_A")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs lora"),
        ({"lora": LoraSettings(fresh_per_task=True)}, "excludes lora.fresh_per_task"),
        ({"lora": LORA}, "needs the package bitsandbytes"),
    ],
)
def test_a_base_in_4_bits_needs_an_adapter_and_bitsandbytes(options, said, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MisconfigurationException, match=said):
        module(folder, load_in_4bit=True, **options)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    data = stream(folder, WRITE)
    data.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(MisconfigurationException, match=r"has 259 tokens, .* knows 258"):
        fit(module(folder), data)


def test_rows_that_may_be_longer_than_the_model_has_positions_are_said(folder):
    data = stream(folder, CHOOSE)
    data.max_length = 5000
    with pytest.warns(UserWarning, match=r"max_length=5000 is more than the 2048 positions"):
        fit(module(folder), data)


def test_tokens_numbered_beyond_the_model_are_refused(folder):
    file = folder / "tokenizer.json"
    written = json.loads(file.read_text())
    written["model"]["vocab"]["z"] = 400  # as many tokens as before, with a gap
    file.write_text(json.dumps(written))
    with pytest.raises(MisconfigurationException, match=r"numbered up to 400, .* knows 258"):
        fit(module(folder), stream(folder, CHOOSE))


def test_a_model_that_is_not_on_disk_is_named_with_the_way_out():
    with pytest.raises(MisconfigurationException, match=r"no/model.*a local folder"):
        CausalLMModule("no/model")


def test_modules_that_are_trained_as_a_whole_are_merged_as_plain_weights(folder):
    lora = LoraSettings(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])

    class Watches(RecallCallback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            name = next(name for name in self.snapshots[-1] if "lm_head" in name)
            before = pl_module.get_parameter(name).detach().clone()
            merges = len(self.history)
            super().on_train_batch_end(trainer, pl_module, *args)
            if len(self.history) > merges:
                merged.append((before, self.snapshots[-1][name], pl_module.get_parameter(name)))

    merged = []
    recall = Watches(every=1.0, rule=Uniform(0.25))
    fit(module(folder, lora=lora), stream(folder, WRITE), recall)
    ((before, old, after),) = merged
    assert not torch.equal(before, old)
    torch.testing.assert_close(after.detach(), 0.75 * before + 0.25 * old)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_is_not_added_to_a_weight_that_another_layer_shares(tmp_path, target):
    base = save_model(tmp_path, tie_word_embeddings=True)
    lora = LoraSettings(r=2, target_modules=["q_proj", target], fresh_per_task=True)
    with pytest.raises(MisconfigurationException, match=f"{target}', which is tied to another"):
        CausalLMModule(base, lora=lora)
