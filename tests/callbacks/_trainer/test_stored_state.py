"""Damage to what a checkpoint holds is told in a sentence that names callback and entry."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.callbacks.early_stopping import TaskEarlyStopping
from recall_lightning.methods.adaptive import AdaptiveInterval
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.ewc_lora import UpdateConsolidation
from recall_lightning.methods.finch import Finch
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.kfac_penalty import KfacPenalty
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.low_lr import LowLearningRate
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.methods.osf import OrthogonalSubspace
from recall_lightning.recall.settings import ImportanceSettings, SnapshotSettings
from tests.callbacks._trainer.test_position import fit, stream
from tests.support.callbacks import FEW

GRADIENTS = ImportanceSettings("gradients", steps=3)
CALLBACKS = {
    "curvature": lambda: RecallCallback(every=2),
    "samples": lambda: RecallCallback(
        every=2, rule="rbf*importance", samples=FEW, importance=GRADIENTS
    ),
    "files": lambda: RecallCallback(
        every=2, rule="importance", snapshots=SnapshotSettings(to="file")
    ),
    "adaptive": AdaptiveInterval,
    "ewc": ElasticWeightConsolidation,
    "ewc_lora": UpdateConsolidation,
    "finch": Finch,
    "kfac_penalty": KfacPenalty,
    "l2": L2ToSnapshot,
    "lwf": LearningWithoutForgetting,
    "hft": HalfFineTuning,
    "low_lr": LowLearningRate,
    "osf": OrthogonalSubspace,
    "monitor": lambda: ForgettingMonitor("val/acc"),
    "early": lambda: TaskEarlyStopping("val/acc"),
}
OPTIONAL = {"blocks", "settings", "files", "written", "elsewhere", "tensors", "curvature", "kind"}
OPTIONAL |= {"shape", "predictions", "old_outputs", "from_first_task", "monitor", "probes"}
OPTIONAL |= {"probe_names", "probes_before", "similarity", "drift", "started", "shapes"}
OPTIONAL |= {
    "prior_written",
    "estimate",
    "start_optimizers",
    "visits",
    "visit",
    "first_visit",
    "trained",
    "earlier_shapes",
    "marks",
    "outputs",
    "last_merge",
    "mean",
    "rolled_back",
    "exceeded",
    "layer",
    "start",
    "found_boundaries",
    "retuned",
    "measured_early",
    "noise",
    "step_sizes",
    "keep",
    "seen_global_step",
    "next",
}  # an older one has none
FREE = {"settings", "merge_seconds", "probe_seconds", "condition"}
FREE |= {"earlier_shapes", "shapes", "marks", "outputs"}  # any names may be there


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a step of a stream that is trained with a callback."""
    folders = {}

    def of(kind, step=15):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            every = ModelCheckpoint(folders[kind], "{step}", every_n_train_steps=1, save_top_k=-1)
            fit(CALLBACKS[kind](), every, tasks=stream(epochs=1))
        return folders[kind] / f"step={step}.ckpt"

    return of


def entries(state, path=()):
    """Every place in nested dicts, and the first in each list."""
    if path:
        yield path
    if isinstance(state, dict):
        for name, value in state.items():
            if name not in FREE:
                yield from entries(value, (*path, name))
    elif isinstance(state, list) and state:
        yield from entries(state[0], (*path, 0))


def changed(state, path, value=None, *, remove=False):
    state = copy.deepcopy(state)
    inside = state
    for name in path[:-1]:
        inside = inside[name]
    if remove:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return state


@pytest.mark.parametrize("kind", CALLBACKS)
def test_an_entry_that_is_missing_or_of_another_type_is_named_with_its_callback(kind, saved):
    callback = CALLBACKS[kind]()
    state = torch.load(saved(kind))["callbacks"][callback.state_key]
    callback.load_state_dict(copy.deepcopy(state))
    said = []
    for path in entries(state):
        wrong = [changed(state, path, b"x")]
        in_history = path[0] == "history" and len(path) > 3
        if isinstance(path[-1], str) and path[-1] not in OPTIONAL and not in_history:
            wrong.append(changed(state, path, remove=True))
        for damaged in wrong:
            said.append(f"{path} was loaded")
            try:
                CALLBACKS[kind]().load_state_dict(damaged)
            except MisconfigurationException as error:
                said[-1] = str(error)
    assert len(said) >= 9
    assert [each for each in said if not each.startswith(f"{type(callback).__name__}: ")] == []


SHAPES = [
    ("curvature", ("snapshots", "tensors", 0, "net.0.weight"), "net.0.weight"),
    ("curvature", ("statistics", "importance", "by_name", "net.2.bias"), "net.2.bias has another"),
    (
        "curvature",
        ("statistics", "moments", "old", "net.0.weight", "matrix"),
        "has matrix of shape",
    ),
    (
        "samples",
        ("statistics", "importance", "gradients", "mean", "net.0.weight"),
        "gradients.mean",
    ),
    ("ewc", ("fisher", "net.0.weight"), "fisher.net.0.weight has another shape"),
    ("ewc", ("anchor", "net.0.weight"), "anchor.net.0.weight has another shape"),
    ("ewc_lora", ("curvature", "net.0.weight", "diagonal"), "curvature.net.0.weight"),
    ("kfac_penalty", ("curvature", "net.0.weight", "inputs.matrix"), "curvature.net.0.weight"),
    ("osf", ("start", "net.0.weight"), "start.net.0.weight has another shape"),
    ("l2", ("anchor", "net.4.bias"), "anchor.net.4.bias has another shape"),
    ("lwf", ("teacher", "net.0.weight"), "teacher.net.0.weight has another shape"),
]


def resume_damaged(kind, saved, tmp_path, damage):
    checkpoint = torch.load(saved(kind))
    key = CALLBACKS[kind]().state_key
    checkpoint["callbacks"][key] = damage(checkpoint["callbacks"][key])
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    fit(CALLBACKS[kind](), tasks=stream(epochs=1), checkpoint=tmp_path / "damaged.ckpt")


@pytest.mark.parametrize(("kind", "path", "said"), SHAPES)
def test_a_tensor_of_another_shape_is_named_with_its_callback(kind, path, said, saved, tmp_path):
    name = type(CALLBACKS[kind]()).__name__
    with pytest.raises(MisconfigurationException, match=f"{name}: .*{said}"):
        resume_damaged(kind, saved, tmp_path, lambda s: changed(s, path, torch.zeros(7, 3, 2)))


def test_what_names_no_weight_is_refused(saved, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"HalfFineTuning: .* 'net.9', which is no"):
        resume_damaged("hft", saved, tmp_path, lambda s: changed(s, ("frozen", 0), "net.9"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("recall_lightning", "random_states", 0, "torch"), torch.zeros(3), "random_states.0"),
        (("recall_lightning", "random_states", 0, "python"), [], "random_states.0"),
        (("recall_lightning", "gradients"), {"net.9": torch.zeros(1)}, "gradients.net.9 is of no"),
        (("recall_lightning", "validation_due"), "x", "recall_lightning.validation_due is a str"),
        (("recall_lightning_position", "begun"), None, "recall_lightning_position.begun is a None"),
    ],
)
def test_damage_beside_the_callbacks_states_is_named(path, value, said, saved, tmp_path):
    checkpoint = changed(torch.load(saved("l2")), path, value)
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(MisconfigurationException, match=f"state is damaged, .*{said}"):
        fit(L2ToSnapshot(), tasks=stream(epochs=1), checkpoint=tmp_path / "damaged.ckpt")


def test_a_callback_of_which_a_checkpoint_holds_no_state_says_so(saved):
    with pytest.warns(UserWarning, match="holds no state of RecallCallback"):
        fit(RecallCallback(every=2), tasks=stream(epochs=1), checkpoint=saved("l2"))
