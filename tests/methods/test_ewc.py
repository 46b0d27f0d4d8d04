import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.ewc import ElasticWeightConsolidation
from tests.support.baseline_tools import (
    Gradients,
    added_gradients,
    assert_same,
    autograd,
    trained_with_a_break,
    weights_of,
)
from tests.support.training import Plain, loader, quiet_trainer


def ewc(strength=1.0, **kwargs):
    return ElasticWeightConsolidation(strength, **({"from_first_task": False} | kwargs))


def test_fisher_adds_up_over_tasks_with_decay_from_the_tasks_own_gradients():
    callback, model, own = ewc(1000.0, fisher_steps=3, decay=0.5), Plain(), Gradients()
    expected = dict.fromkeys(weights_of(model), 0.0)
    for task in range(3):
        quiet_trainer(own, callback).fit(model, loader(task))
        for name in expected:
            last = torch.stack([gradients[name] ** 2 for gradients, _ in own.steps[-3:]])
            expected[name] = 0.5 * expected[name] + last.mean(0)
        assert_same(callback.fisher, expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_added_is_the_gradient_of_the_written_out_penalty(accumulate):
    callback, model = ewc(1000.0), Plain()
    kwargs = {"accumulate_grad_batches": accumulate}
    first = added_gradients(callback, model, loader(0), **kwargs)
    assert not any(bool(value.any()) for extra, _ in first for value in extra.values())
    fisher = {name: value.clone() for name, value in callback.fisher.items()}
    start = weights_of(model)

    def penalty(weights):
        return 500.0 * sum((fisher[n] * (weights[n] - start[n]) ** 2).sum() for n in start)

    for extra, weights in added_gradients(callback, model, loader(1), **kwargs):
        assert_same(extra, autograd(penalty, weights), atol=1e-5, rtol=1e-4)


def test_important_weights_stay_closer():
    def moved(strength):
        torch.manual_seed(0)
        callback, model = ewc(strength), Plain()
        quiet_trainer(callback, max_epochs=2).fit(model, loader(0))
        fisher, start = callback.fisher["net.0.weight"].clone(), weights_of(model)["net.0.weight"]
        quiet_trainer(callback, max_epochs=2).fit(model, loader(1))
        distance = (weights_of(model)["net.0.weight"] - start).abs()
        important = fisher > fisher.median()
        return distance[important].mean() / distance[~important].mean()

    assert moved(1e4) < 0.7 * moved(0.0)


def test_the_first_task_is_not_protected_and_that_is_said():
    with pytest.warns(UserWarning, match="does not protect what the model knows before its first"):
        added = added_gradients(ewc(from_first_task=True), Plain(), loader(0))
    assert not any(bool(value.any()) for extra, _ in added for value in extra.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*does not protect.*")
        quiet_trainer(ewc()).fit(Plain(), loader(0))


def test_another_run_forgets_the_last_ones_fisher():
    callback = ewc(task_epochs=1)
    quiet_trainer(callback, max_epochs=2).fit(Plain(), loader(0))
    added = added_gradients(callback, Plain(), loader(0), max_epochs=1)
    assert not any(bool(value.any()) for extra, _ in added for value in extra.values())


def test_a_task_that_stops_before_its_last_steps_is_said_to_go_unprotected():
    callback = ewc(fisher_steps=2)
    stop = EarlyStopping("val/acc", mode="max", stopping_threshold=0.0)
    with pytest.warns(UserWarning, match="task 0 stopped before its last 2 steps"):
        quiet_trainer(callback, stop, max_epochs=5).fit(Plain(), loader(0), loader(0))
    assert callback.fisher == {}


def test_weights_that_changed_their_shape_are_said_to_go_unprotected():
    callback, model = ewc(), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    model.net[2], model.net[4] = torch.nn.Linear(16, 12), torch.nn.Linear(12, 2)
    gone = r"net\.2\.weight, net\.2\.bias, net\.4\.weight: "
    with pytest.warns(UserWarning, match=f"no longer protects {gone}"):
        quiet_trainer(callback).fit(model, loader(1))
    assert callback.fisher["net.4.weight"].shape == (2, 12)


@pytest.mark.parametrize("stop_after", [5, 12])
def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path, stop_after):
    whole, resumed, callback = trained_with_a_break(
        lambda: ewc(100.0, fisher_steps=5, task_epochs=1), tmp_path / "mid.ckpt", stop_after
    )
    assert_same(whole, resumed, rtol=0, atol=0)
    assert callback.fisher.keys() == whole.keys()


def test_bad_arguments_are_refused():
    with pytest.raises(MisconfigurationException, match="decay=2"):
        ewc(decay=2)
    with pytest.raises(MisconfigurationException, match="fisher_steps=0 must be an integer"):
        ewc(fisher_steps=0)
