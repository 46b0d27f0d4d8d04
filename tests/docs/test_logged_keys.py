"""The page of logged keys names what is logged, and nothing else."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import ConcatDataset, DataLoader

from recall_lightning import DriftSettings, ForgettingMonitor, RecallCallback
from recall_lightning.data import InstructionStream, InstructionTask
from recall_lightning.models import CausalLMModule, ClassifierModule
from tests.support.callbacks import FEW
from tests.support.tiny_streams import counting, sequences, tiny_llama_module
from tests.support.training import Plain, loader, quiet_trainer, task_data

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "logged.md"
ON_PAGE = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
TINY = ROOT / "recipes" / "five_tasks_tiny"


class Recorder(WandbLogger):
    """Keeps the keys of what it is given; a logger of Weights & Biases, so it is given all."""

    def __init__(self):
        self.keys = set()
        self._experiment = SimpleNamespace(
            define_metric=lambda *_, **__: None, log=self.keys.update, summary={}
        )

    name, version, save_dir = "recorder", "0", None

    @property
    def experiment(self):
        return self._experiment

    def log_metrics(self, metrics, step=None):
        self.keys |= set(metrics)

    def log_image(self, key, images):
        self.keys.add(key)

    def log_table(self, key, columns, data):
        self.keys.add(key)

    def log_hyperparams(self, *_, **__):
        """Take them, and keep none."""

    def finalize(self, status):
        """End nothing."""


@pytest.fixture(scope="module")
def keys():
    """All that was logged in runs of every kind."""
    recorder = Recorder()
    for make in (
        lambda: RecallCallback(plasticity=0.9, every=2),
        lambda: RecallCallback(rule="rbf", samples=FEW, snapshots=2),
        lambda: RecallCallback(rule="subspace"),
    ):
        run_plain(recorder, make())
    run_unannounced(recorder)
    run_language_models(recorder)
    return recorder.keys


def run_unannounced(recorder):
    torch.manual_seed(0)
    data = ConcatDataset([task_data(task, 480) for task in range(2)])
    callback = RecallCallback(
        every=1.0, merge_first_task=False, boundaries=DriftSettings(minimal_steps=20)
    )
    quiet_trainer(callback, logger=recorder).fit(Plain(), DataLoader(data, batch_size=8))


def run_plain(recorder, callback):
    torch.manual_seed(0)
    monitor = ForgettingMonitor("val/acc")
    module, held_out = Plain(), [loader(task, 16, shuffle=False) for task in range(2)]
    quiet_trainer(monitor, logger=recorder).validate(module, held_out, verbose=False)
    for task in range(2):
        trainer = quiet_trainer(callback, monitor, logger=recorder, log_every_n_steps=1)
        trainer.fit(module, loader(task), held_out)
    classifier = ClassifierModule(torch.nn.Linear(8, 2), num_classes=2)
    trainer = quiet_trainer(logger=recorder, log_every_n_steps=1)
    trainer.fit(classifier, loader(0), held_out)


def run_language_models(recorder):
    rows = [{"input_ids": row, "labels": row, "num_bytes": torch.tensor(8)} for row in sequences(1)]
    callback, module = RecallCallback(), tiny_llama_module(lora={})
    for step in (1, 2):
        trainer = quiet_trainer(callback, logger=recorder, log_every_n_steps=1)
        trainer.fit(module, counting(step), [DataLoader(rows, batch_size=8)] * 2)
    tasks = [
        InstructionTask(
            name=name,
            template=name,
            train=str(next((TINY / "data").glob(f"{name}_train.*"))),
            validation=str(next((TINY / "data").glob(f"{name}_val.*"))),
        )
        for name in ("sst2", "squad_v2")
    ]
    stream = InstructionStream(tokenizer=str(TINY / "model"), max_length=256, tasks=tasks)
    trainer = quiet_trainer(logger=recorder, limit_val_batches=1)
    module = CausalLMModule(str(TINY / "model"), lambda params: torch.optim.SGD(params, lr=0.1))
    trainer.validate(module, stream, verbose=False)


def matches(shown, key):
    return re.fullmatch(re.sub(r"<\w+>", "[^/]+", re.sub(r"[.]", r"\.", shown)), key)


def test_every_logged_key_is_on_the_page(keys):
    assert {key for key in keys if not any(matches(shown, key) for shown in ON_PAGE)} == set()


@pytest.mark.parametrize("shown", ON_PAGE)
def test_every_key_on_the_page_is_logged(shown, keys):
    others = [other for other in ON_PAGE if "<task>" not in other]
    found = [key for key in keys if matches(shown, key)]
    if shown == "continual/<task>":  # which every metric would match
        found = [key for key in found if key not in others]
    assert found
