"""Training in a process of its own that is killed at the n-th thing it does."""

import functools
import os
import signal
from pathlib import Path
from random import Random

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from recall_lightning import RecallCallback
from recall_lightning.merging import blockwise
from recall_lightning.merging.coefficients import linear_maps
from recall_lightning.merging.functional import in_place
from recall_lightning.recall import snapshot_storage
from recall_lightning.recall.settings import ImportanceSettings, SnapshotSettings
from recall_lightning.recall.statistics import moments, samples
from tests.support.callbacks import FEW
from tests.support.processes import exit_code_of
from tests.support.resumed_runs import differences, stream, train

SCENARIOS = {
    "default": ({}, {}),
    "default, files": ({"snapshots": SnapshotSettings(to="file")}, {}),
    "paper's rule, files, two snapshots": (
        {"rule": "rbf", "samples": FEW, "snapshots": SnapshotSettings(number=2, to="file")},
        {"val_check_interval": 0.5},
    ),
    "gradients, accumulated": (
        {
            "rule": "rbf*importance",
            "end_rule": "subspace",
            "samples": FEW,
            "importance": ImportanceSettings("gradients", steps=4),
        },
        {"accumulate_grad_batches": 2},
    ),
}
HOOKS = [name for name in vars(Callback) if name.startswith("on_") and "exception" not in name]
CALLS = [  # what may be half done when a process dies
    (blockwise, "merge_snapshots_"),
    (in_place, "_lerp_one_"),
    (linear_maps, "from_matrix"),
    (samples, "hidden_states"),
    (moments, "kronecker_factors"),
    (snapshot_storage.SnapshotStorage, "take"),
    (torch, "save"),
    (torch.optim.AdamW, "step"),
    (os, "write"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
]


class Countdown:
    """Counts events, and kills the process at one of them."""

    def __init__(self, kill_at=None):
        self.kill_at = kill_at
        self.events = 0

    def event(self, name):
        self.events += 1
        if self.events == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name):
        """Count an event before and after each call."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            self.event(f"before {name}")
            result = function(*args, **kwargs)
            self.event(f"after {name}")
            return result

        setattr(owner, name, watched)

    def hooks(self):
        """A callback of which every hook is an event."""

        class Hooks(Callback):
            pass

        for name in HOOKS:
            setattr(Hooks, name, lambda _, *args, name=name, **kwargs: self.event(name))
        return Hooks()


def run(folder, scenario, kill_at):
    """Train, from the last checkpoint if there is one; write what came out, and the events."""
    torch.set_num_threads(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    countdown = Countdown(kill_at)
    recall, trainer = SCENARIOS[scenario]
    callbacks = [
        countdown.hooks(),
        RecallCallback(every=2, **recall),
        ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=1, save_last=True),
    ]
    for owner, name in CALLS:
        countdown.watch(owner, name)
    trainer = {"logger": True, "default_root_dir": folder} | trainer
    result = train(callbacks, stream(), "last", **trainer)
    torch.save(result | {"events": countdown.events}, Path(folder) / "result.pt")


def in_process(*arguments):
    """Run in a process of its own; return how it ended."""
    return exit_code_of(run, *arguments)


def reference(folder, scenario):
    """Return what an uninterrupted run comes to, and how many events it has."""
    folder.mkdir(parents=True)
    assert in_process(str(folder), scenario, None) == 0
    result = torch.load(folder / "result.pt")
    return result, result.pop("events")


def interrupted(folder, scenario, kills):
    """Return what a run comes to that is killed at these events, one after the other."""
    folder.mkdir(parents=True)
    for kill_at in kills:
        code = in_process(str(folder), scenario, kill_at)
        if code == 0:  # a resumed run has fewer events
            break
        assert code == -signal.SIGKILL, f"the run failed with {code}"
    else:
        assert in_process(str(folder), scenario, None) == 0, "the resumed run failed"
    result = torch.load(folder / "result.pt")
    del result["events"]
    return result


def trial(folder, scenario, seed, whole, events):
    """Kill a run once, or twice where the seed says so; return the kills and what differs."""
    random = Random(seed)
    kills = [random.randint(1, events) for _ in range(random.choice([1, 1, 2]))]
    return kills, differences(whole, interrupted(folder, scenario, kills))
