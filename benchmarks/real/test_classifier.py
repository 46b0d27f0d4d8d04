from collections import OrderedDict

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.real.classifier import Classifier


def rates(**settings):
    module = Classifier(torch.nn.Linear(2, 2), lr=1.0, **settings)
    seen = []
    module.on_train_batch_start = lambda *_: seen.append(module.optimizers().param_groups[0]["lr"])
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TensorDataset(torch.zeros(10, 2), torch.zeros(10, dtype=torch.long))
    trainer.fit(module, DataLoader(data, batch_size=1))
    return seen


def test_each_task_has_a_cosine_of_its_own():
    first, second = (half := rates(tasks=2))[:10], half[10:]
    assert first == pytest.approx(second)
    assert first == sorted(first, reverse=True)
    assert first[0] > 0.99
    assert first[-1] < 0.01


def test_a_warm_up_rises_before_the_cosine():
    first = rates(tasks=2, warmup=0.4)[:10]
    assert first.index(max(first)) in (3, 4)
    assert first[0] < 0.2
    assert first[5:] == pytest.approx(rates(tasks=2)[5:10])


def test_a_head_may_have_a_learning_rate_of_its_own():
    network = torch.nn.Sequential(
        OrderedDict(body=torch.nn.Linear(2, 3), head=torch.nn.Linear(3, 2))
    )
    optimizer = Classifier(network, lr=0.1, head_lr=0.5).configure_optimizers()
    body, head = optimizer.param_groups
    assert (body["lr"], head["lr"]) == (0.1, 0.5)
    assert {id(p) for p in head["params"]} == {id(p) for p in network.head.parameters()}
    assert {id(p) for p in body["params"]} == {id(p) for p in network.body.parameters()}


def test_without_tasks_the_learning_rate_stays():
    assert set(rates()) == {1.0}
