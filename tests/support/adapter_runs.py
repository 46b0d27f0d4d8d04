"""LoRA runs to be started in one or several processes, as those of ``sharded_runs``.

    python -m tests.support.adapter_runs STRATEGY PROCESSES FOLDER

STRATEGY is single, ddp or fsdp. Writes ``FOLDER/RUN-RANK.pt`` for each of RUNS.
"""

import sys
import warnings
from pathlib import Path

import peft
import torch
from lightning.pytorch import Callback, LightningModule

from recall_lightning import PriorSettings, RecallCallback, TaskStream
from recall_lightning.callbacks import FreshAdapter
from recall_lightning.merging.rules import Uniform
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.sharding import whole
from tests.support.strategies import own_rank, strategy_of
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import quiet_trainer

KNEW = PriorSettings(sequences=8, tokens=8)
RUNS = {
    "uniform": ({"rule": Uniform(0.2)}, {}),
    "gradients": ({"rule": "importance"}, {}),
    "default": ({"prior": KNEW}, {}),
    "subspace": ({"rule": "subspace", "prior": KNEW}, {}),
    "saved": ({"prior": KNEW}, {"modules_to_save": ["lm_head"]}),
    "fresh": ({"rule": Uniform(0.2)}, {}),
}
"""Arguments of the callback, and of the adapter."""
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


class Adapted(LightningModule):
    """A tiny Llama with an adapter on its attention, whose layers are sharded one by one."""

    def __init__(self, **lora):
        super().__init__()
        config = peft.LoraConfig(**({"r": 3, "target_modules": ["q_proj", "v_proj"]} | lora))
        self.model = peft.get_peft_model(tiny_llama(**SIZES), config)
        self.sharded = False

    def configure_model(self):
        if self.sharded or self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        self.sharded = True
        mesh = self.device_mesh["data_parallel"]
        inner = self.model.get_base_model()
        for layer in inner.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(inner, mesh=mesh)

    def forward(self, **batch):
        return self.model(**batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """There is none."""

    def training_step(self, batch, batch_idx):
        return self(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-2)


class Watches(Callback):
    """Keeps the base at each task's end, and has every process draw other numbers from then on."""

    def __init__(self):
        self.bases = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.bases.append(whole(pl_module.get_parameter(BASE)).detach().clone())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(trainer.global_rank)


def sequences(task, samples=32):
    ids = torch.randint(0, 32, (samples, 6), generator=torch.Generator().manual_seed(task))
    return [{"input_ids": row, "labels": row} for row in ids]


def train(strategy, processes, name):
    recall, lora = RUNS[name]
    torch.manual_seed(0)
    model, watches = Adapted(**lora), Watches()
    stream = TaskStream.from_datasets(
        [(sequences(task), sequences(task + 2, 8)) for task in range(2)],
        batch_size=8 // processes,
        epochs_per_task=1,
    )
    recall = RecallCallback(every=2, **recall)
    fresh = [FreshAdapter()] if name == "fresh" else []
    trainer = quiet_trainer(
        *[recall, watches, *fresh],
        strategy=strategy,
        devices=processes,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=stream)
    return {
        "weights": {n: whole(p).detach().clone() for n, p in named_weights(model).items()},
        "bases": watches.bases,
        "coefficients": [record["coefficient"] for record in recall.history],
    }


BASE = "model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"


def main():
    kind, processes, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)

    for name in RUNS:
        result = train(strategy_of(kind, processes), processes, name)
        torch.save(result, folder / f"{name}-{own_rank()}.pt")


if __name__ == "__main__":
    main()
