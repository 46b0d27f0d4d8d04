"""Runs with boundaries that nobody announces, to be started in one or several processes.

    python -m tests.support.drift_runs STRATEGY PROCESSES FOLDER

STRATEGY is single, ddp or fsdp. Writes ``FOLDER/RANK.pt``, of a run and of one that goes on from a
checkpoint of its midst.
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback

from recall_lightning import DriftSettings, RecallCallback, TaskStream
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.sharding import whole
from tests.support.sharded_runs import Uneven
from tests.support.strategies import own_rank, strategy_of
from tests.support.training import quiet_trainer, task_data

SAVED = (50, 66)  # optimizer steps: in the first task, and right after the change


class Saves(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step in SAVED:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def train(strategy, processes, *callbacks, resume=None):
    torch.manual_seed(0)
    data = [(task_data(task, 960), task_data(task, 8)) for task in range(2)]
    stream = TaskStream.from_datasets(data, epochs_per_task=1, batch_size=16 // processes)
    recall = RecallCallback(
        every=9, merge_first_task=False, boundaries=DriftSettings(minimal_steps=20)
    )
    trainer = quiet_trainer(
        recall,
        *callbacks,
        strategy=strategy,
        devices=processes,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
    )
    model = Uneven()
    trainer.fit(model, datamodule=stream, ckpt_path=resume)
    return {
        "weights": {n: whole(p).detach().clone() for n, p in named_weights(model).items()},
        "changes": recall.changes,
        "coefficients": [record["coefficient"] for record in recall.history],
    }


def main():
    kind, processes, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)

    results = {"whole": train(strategy_of(kind, processes), processes, Saves(folder))}
    for step in SAVED:
        saved = folder / f"{step}.ckpt"
        results[str(step)] = train(strategy_of(kind, processes), processes, resume=saved)
    torch.save(results, folder / f"{own_rank()}.pt")


if __name__ == "__main__":
    main()
