"""General ability of a tiny model, against what is known of it."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from benchmarks.real import general_ability
from benchmarks.real.general_ability import GeneralAbility, divergence, loss, measured_in
from recall_lightning.data import TaskStream

TEXT = torch.arange(24).view(3, 8) % 16


def tiny():
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).eval()


def test_the_divergence_is_that_of_distributions_token_by_token():
    base, model = tiny(), tiny()
    model.lm_head.weight.data += 0.1 * torch.randn(16, 8)
    total = 0.0
    for row in TEXT:
        with torch.no_grad():
            old, new = (each(row[None]).logits[0].log_softmax(-1) for each in (base, model))
        for position in range(7):
            total += sum(
                o.exp() * (o - n) for o, n in zip(old[position], new[position], strict=True)
            )
    assert divergence(base, model, TEXT, at_once=2) == pytest.approx(float(total) / 21, rel=1e-4)
    assert divergence(base, copy.deepcopy(base), TEXT) == 0


def test_the_loss_is_the_models_own():
    model = tiny()
    with torch.no_grad():
        own = model(TEXT, labels=TEXT).loss
    assert loss(model, TEXT, at_once=2) == pytest.approx(float(own), rel=1e-5)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny()

    def training_step(self, batch, batch_idx):
        return self.model(batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PutBack(Callback):
    """What a merge may do with a task's last batch."""

    def on_fit_start(self, trainer, pl_module):
        self.was = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            pl_module.load_state_dict(self.was)


def test_a_run_measures_once_a_task_when_all_callbacks_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(general_ability, "written_by", lambda *args: TEXT)
    monkeypatch.setattr(general_ability, "news_tokens", lambda *args: TEXT)
    data = [(DataSet(), DataSet()) for _ in range(2)]
    stream = TaskStream.from_datasets(data, epochs_per_task=[2, 1])
    stream.tokenizer = SimpleNamespace()
    trainer = Trainer(
        max_epochs=3,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
        callbacks=[GeneralAbility(questions=0), PutBack()],
        logger=CSVLogger(tmp_path),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    torch.manual_seed(1)
    module = Module()
    trainer.fit(module, datamodule=stream)
    found = measured_in(next(tmp_path.rglob("version_0")))
    assert found.kl[0] == 0 < found.kl[1]
    assert len(found.kl) == 2
    assert found.news[0] == found.news[1] != found.news[2]
    assert found.news[2] == pytest.approx(loss(module.model.eval(), TEXT))
    assert measured_in(tmp_path) is None


class DataSet(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return TEXT[index % 3]
