import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import SnapshotSettings
from tests.support.callbacks import FEW, Fixed, Spy
from tests.support.training import Plain, loader, quiet_trainer


def recall(number, **kwargs):
    given = {"every": 1.0, "rule": "rbf", "samples": FEW, "snapshots": SnapshotSettings(number)}
    return Spy(**given | kwargs)


def trained(callback, tasks=3, model=None):
    model = model or Plain()
    for task in range(tasks):
        quiet_trainer(callback).fit(model, loader(task))
    return model


@pytest.mark.parametrize(("number", "tasks"), [(1, [2]), (2, [1, 2]), ("all", [0, 1, 2])])
def test_the_last_few_tasks_snapshots_are_kept(number, tasks):
    callback = recall(number)
    trained(callback)
    assert len(callback.snapshots) == len(tasks)
    earlier = [old["task"] for old in callback.history[-1].get("earlier", [])]
    assert [*earlier, callback.history[-1]["task"]] == tasks


def test_all_kept_snapshots_and_the_live_model_share_one_softmax_and_one_sum():
    spy = recall("all")
    trained(spy)
    record = spy.history[-1]
    columns = [*record["earlier"], record]
    for block in spy.blocks:
        powers = [math.exp(column["similarity"][block.name]) for column in columns]
        shares = [power / (sum(powers) + math.e) for power in powers]
        assert [c["coefficient"][block.name] for c in columns] == pytest.approx(shares, rel=1e-6)
        for name in block.weights:
            expected = (1 - sum(shares)) * spy.before[name] + sum(
                w * snapshot[name] for w, snapshot in zip(shares, spy.snapshots, strict=True)
            )
            torch.testing.assert_close(spy.after[name], expected)


def test_what_a_checkpoint_holds_of_several_snapshots_comes_back():
    callback = recall(2)
    trained(callback)
    restored = recall(2)
    restored.load_state_dict(callback.state_dict())
    for kept, back in zip(callback.snapshots, restored.snapshots, strict=True):
        assert all(torch.equal(kept[name], back[name]) for name in kept)


def test_a_resume_with_fewer_snapshots_merges_the_newest(tmp_path):
    def train(number, *others, checkpoint=None):
        callback = recall(number, every=2, task_epochs=1)
        trainer = quiet_trainer(callback, *others, max_epochs=3, enable_checkpointing=bool(others))
        trainer.fit(Plain(), loader(0), ckpt_path=checkpoint)
        return callback.history[-1]

    middle = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=19, save_top_k=-1)
    assert [old["task"] for old in train("all", middle)["earlier"]] == [0, 1]
    assert [old["task"] for old in train(2, checkpoint=tmp_path / "step=19.ckpt")["earlier"]] == [1]
    assert "earlier" not in train(1, checkpoint=tmp_path / "step=19.ckpt")


def test_snapshots_of_a_model_that_trained_other_weights_are_dropped_with_a_warning():
    callback, model = recall("all"), Plain()
    trained(callback, 2, model)
    model.net[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="trainable weights changed before task 2"):
        quiet_trainer(callback).fit(model, loader(2))
    assert len(callback.snapshots) == 1


def test_a_uniform_weight_is_shared_by_snapshots_and_may_differ_over_depth():
    spy = Spy(every=1.0, rule=Uniform([0.8, 0.4]), snapshots=SnapshotSettings(2))
    trained(spy)
    assert spy.history[-1]["coefficient"] == pytest.approx(
        {"net.0": 0.4, "net.2": 0.3, "net.4": 0.2}
    )
    assert spy.history[-1]["earlier"][0]["coefficient"] == spy.history[-1]["coefficient"]


def test_a_weight_by_pattern_merges_weight_by_weight():
    spy = Spy(every=1.0, rule=Uniform({"*.bias": 0.0, "*": 0.5}))
    trained(spy, 1)
    assert torch.equal(spy.after["net.0.bias"], spy.before["net.0.bias"])
    middle = (spy.before["net.0.weight"] + spy.snapshots[0]["net.0.weight"]) / 2
    torch.testing.assert_close(spy.after["net.0.weight"], middle)


def test_snapshots_of_an_adapter_whose_base_has_changed_are_dropped_with_a_warning():
    """One that was merged into it and replaced by a fresh one has the same names and shapes."""
    callback, model = recall(2), Plain()
    model.net[0].requires_grad_(False)
    trained(callback, 1, model)
    with torch.no_grad():
        model.net[0].weight += 0.1
    with pytest.warns(UserWarning, match="frozen weights or LoRA scales changed before task 1"):
        quiet_trainer(callback).fit(model, loader(1))
    assert len(callback.snapshots) == 1


class CountsTheLiveModelToo(Fixed):
    def joint_coefficients(self, inputs):
        return [self.coefficients(given) for given in inputs] * 2


def test_a_rule_that_gives_the_live_models_share_too_is_refused():
    callback = RecallCallback(every=1.0, rule=CountsTheLiveModelToo({}))
    with pytest.raises(MisconfigurationException, match="coefficients of 2 models for 1 snapshot"):
        trained(callback, 1)
