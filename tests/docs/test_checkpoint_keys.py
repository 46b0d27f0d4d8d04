"""The page of what a checkpoint holds names what it holds, and nothing else."""

import re
from pathlib import Path

import pytest
import torch

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.callbacks import TaskEarlyStopping
from recall_lightning.data import DigitsStream
from recall_lightning.methods.table import METHODS
from recall_lightning.models import ClassifierModule
from tests.support.callbacks import FEW
from tests.support.tiny_streams import counting, tiny_llama_module
from tests.support.training import Plain, loader, quiet_trainer

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "checkpoint.md"
SECTIONS = {
    title: set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    for title, text in re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
}
EVERY = SECTIONS["Every callback"]
CALLBACKS = {method.callback for method in METHODS.values() if method.callback} - {RecallCallback}


def fitted(callback, tasks=2, **limits):
    module, monitor = Plain(), ForgettingMonitor("val/acc", **limits)
    held_out = [loader(task, 16, shuffle=False) for task in range(tasks)]
    for task in range(tasks):
        quiet_trainer(callback, monitor).fit(module, loader(task), held_out)


@pytest.mark.parametrize(
    "callback",
    [RecallCallback(), ForgettingMonitor("val/acc"), TaskEarlyStopping("val/loss")],
    ids=lambda callback: type(callback).__name__,
)
def test_a_callbacks_state_is_what_its_section_says(callback):
    assert set(callback.state_dict()) == EVERY | SECTIONS[type(callback).__name__]


def test_the_states_of_methods_are_what_their_section_says():
    found = set()
    for callback in CALLBACKS:
        found |= set(callback().state_dict()) - EVERY
    of_recall = SECTIONS["RecallCallback"] - {"tensors"}
    assert found - of_recall == SECTIONS["The methods"]


def test_methods_are_named_beside_the_keys_that_they_have():
    rows = re.findall(r"^\| `([^`]+)` \| (`.+`) \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 10
    for key, named in rows:
        has = {m.name for m in METHODS.values() if m.callback and key in m.callback().state_dict()}
        assert set(re.findall(r"`(\w+)`", named)) == has - {"recall_paper"}, key


def test_snapshots_and_statistics_hold_what_their_sections_say():
    curvature, similarity = RecallCallback(), RecallCallback(rule="rbf", samples=FEW)
    for callback in (curvature, similarity):
        fitted(callback, tasks=1)
    state = curvature.state_dict()
    statistics = state["statistics"] | similarity.state_dict()["statistics"]
    assert set(state["snapshots"]) == SECTIONS["snapshots"]
    names = {"recent_batches", "samples", "importance", "moments", "head_inputs", "step_sizes"}
    assert names == set(statistics)
    for name, own in statistics.items():
        assert set(own) == SECTIONS[name], name


def test_entries_of_history_have_what_the_page_says():
    adapters, module = RecallCallback(), tiny_llama_module(lora={})
    for step in (1, 2):
        quiet_trainer(adapters).fit(module, counting(step))
    adapters.retune(module, 0.5)
    several, undone = RecallCallback(rule="rbf", samples=FEW, snapshots=2), RecallCallback()
    refitted = RecallCallback()
    fitted(several)
    fitted(refitted)
    limits = {"limits": {"estimated_forgetting": 0.0}, "on_limit": "rollback"}
    fitted(undone, **limits)
    callbacks = (adapters, several, refitted, undone)
    entries = [entry for callback in callbacks for entry in callback.history]
    assert {key for entry in entries for key in entry} == SECTIONS["An entry of history"]


def test_a_checkpoint_has_our_keys_beside_lightnings(tmp_path):
    def saved(module, *callbacks, data, **options):
        trainer = quiet_trainer(*callbacks, limit_train_batches=3, **options)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        return torch.load(tmp_path / "saved.ckpt", weights_only=True)

    stream = DigitsStream(num_tasks=2, batch_size=8)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    options = {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}
    of_stream = saved(ClassifierModule(net, 10), RecallCallback(), data=stream, **options)
    of_text = saved(tiny_llama_module(), RecallCallback(), data=counting(1))
    plain = set(saved(Plain(), data=loader(0)))
    found = (set(of_stream) | set(of_text)) - plain | {"callbacks"}
    shown = {key for key in SECTIONS["The checkpoint itself"] if not key.startswith("<")}
    assert found == shown | {"DigitsStream"}
    assert set(of_stream["DigitsStream"]) == {"shortened"}
