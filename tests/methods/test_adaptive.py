import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.adaptive import AdaptiveInterval
from tests.support.baseline_tools import trained_with_a_break
from tests.support.training import Plain, loader, quiet_trainer


class Paced(Plain):
    """Each step moves the weights by a given length, always in one direction."""

    def __init__(self, speeds):
        super().__init__()
        self.speeds, self.step = speeds, 0

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        with torch.no_grad():
            self.net[0].bias += self.speeds[self.step] / self.net[0].bias.numel() ** 0.5
        self.step += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def merges(speeds, callback=None, tasks=1, **kwargs):
    callback = callback or AdaptiveInterval(**({"every": 4, "strength": 0.0} | kwargs))
    model = Paced(speeds)
    for _ in range(tasks):
        quiet_trainer(callback).fit(model, loader(0, samples=8 * len(speeds) // tasks))
    return [record["step"] for record in callback.history]


def test_at_constant_speed_the_interval_is_every():
    assert merges([1.0] * 16) == [4, 8, 12, 16]
    assert merges([1.0] * 16, every=0.25) == [4, 8, 12, 16]


def test_the_measure_is_relative():
    assert merges([0.01] * 16) == merges([1.0] * 16)


def test_a_model_that_slows_down_merges_less_often_and_one_that_speeds_up_more():
    slowing, speeding = merges([4.0] * 20 + [1.0] * 20), merges([1.0] * 20 + [4.0] * 20)

    def intervals(steps):
        early = [s for s in steps if s <= 20]
        return len(early), len(steps) - len(early)

    assert intervals(slowing)[0] > intervals(slowing)[1]
    assert intervals(speeding)[0] < intervals(speeding)[1]


def test_of_two_tasks_the_faster_merges_more_often():
    callback = AdaptiveInterval(every=4, strength=0.0)
    merges([1.0] * 16 + [3.0] * 16, callback, tasks=2)
    of_task = [sum(record["task"] == task for record in callback.history) for task in range(2)]
    assert of_task[1] > of_task[0]


def test_the_interval_stays_within_its_limit():
    assert merges([1.0] * 8 + [0.0] * 24, limit=2.0) == [4, 8, 16, 24, 32]
    fast = merges([1.0] * 8 + [1e3] * 8, limit=2.0)
    assert fast == [4, 8, 10, 12, 14, 16]


def test_what_a_merge_moves_is_not_the_models_own_movement():
    assert merges([1.0] * 16, strength=0.9) == [4, 8, 12, 16]


def test_a_first_task_that_is_not_merged_does_not_count():
    callback = AdaptiveInterval(every=4, strength=0.0, merge_first_task=False)
    merges([50.0] * 16 + [1.0] * 16, callback, tasks=2)
    assert [record["step"] for record in callback.history] == [20, 24, 28, 32]


def test_the_snapshot_gets_strength():
    callback = AdaptiveInterval(strength=0.4)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert len(callback.history) > 1
    assert {c for r in callback.history for c in r["coefficient"].values()} == {0.4}


def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, resumed, callback = trained_with_a_break(
        lambda: AdaptiveInterval(every=3, task_epochs=1), tmp_path / "mid.ckpt"
    )
    assert {record["task"] for record in callback.history} == {0, 1}
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_copies_of_the_weights_keep_their_memory_from_step_to_step_and_task_to_task():
    class Watched(AdaptiveInterval):
        seen = []

        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            self.seen.append({name: copy.data_ptr() for name, copy in self._before.items()})

    merges([1.0] * 16, Watched(every=3, strength=0.5), tasks=2)
    assert len(Watched.seen) == 16
    assert all(addresses == Watched.seen[0] for addresses in Watched.seen)


def test_bad_limits_are_refused():
    with pytest.raises(MisconfigurationException, match=r"limit=0\.5"):
        AdaptiveInterval(limit=0.5)


def test_bad_strengths_are_refused():
    with pytest.raises(MisconfigurationException, match="strength: weight="):
        AdaptiveInterval(strength=1.0)
