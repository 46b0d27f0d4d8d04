import pytest
import torch
from torch import nn

from recall_lightning import PriorSettings, RecallCallback
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.recall.records import record_scalars
from tests.support.callbacks import statistic
from tests.support.language_modules import Language, texts
from tests.support.training import Plain, loader, quiet_trainer

PRIOR = PriorSettings(sequences=4, tokens=16)


def fitted(tasks=1, **options):
    model, callback = Language(), RecallCallback(**{"prior": PRIOR} | options)
    for _ in range(tasks):
        quiet_trainer(callback).fit(model, texts())
    return model, callback


def test_it_is_the_divergence_from_the_snapshot_on_what_the_model_wrote_before():
    model, callback = fitted()
    (batch,) = statistic(callback, "moments").written
    with torch.no_grad(), undisturbed(model):
        now = nn.functional.log_softmax(model.model(**batch).logits, -1)
        with callback.snapshots[-1].applied_to(model):
            then = nn.functional.log_softmax(model.model(**batch).logits, -1)
    tokens = batch["attention_mask"].bool()
    expected = (then.exp() * (then - now)).sum(-1)[tokens].mean()
    (record,) = callback.history
    found = record["written_divergence"]
    assert found["merged"] == pytest.approx(float(expected), rel=1e-2)
    assert found["live"] > found["merged"] > 0
    assert record_scalars(record)["recall/written_divergence/merged"] == found["merged"]


def test_what_was_written_before_the_first_task_is_used_at_each_task_s_end():
    _, callback = fitted(tasks=2)
    assert all("written_divergence" in record for record in callback.history)


def test_a_merge_without_a_plasticity_has_it_too():
    _, callback = fitted(plasticity=None)
    assert callback.history[0]["written_divergence"]["merged"] > 0


def test_measuring_it_changes_no_merge():
    model, _ = fitted()
    other = Language()
    callback = RecallCallback(prior=PRIOR)
    moments = statistic(callback, "moments")
    type(moments).written, kept = property(lambda self: []), type(moments).written
    try:
        quiet_trainer(callback).fit(other, texts())
    finally:
        type(moments).written = kept
    assert "written_divergence" not in callback.history[0]
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_of_a_prior_of_the_user_s_nothing_is_kept_and_none_is_measured():
    batches = [{"input_ids": torch.tensor([[1, 2, 3, 3]])}]
    _, callback = fitted(prior=batches)
    assert "written_divergence" not in callback.history[0]
    assert statistic(callback, "moments").state_dict()["prior_written"] == [[]]


def test_a_model_that_writes_nothing_has_none():
    callback = RecallCallback()
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert "written_divergence" not in callback.history[0]


def test_a_checkpoint_holds_what_was_written():
    _, callback = fitted()
    other = RecallCallback(prior=PRIOR)
    other.load_state_dict(callback.state_dict())
    (one,), (two,) = (statistic(each, "moments").written for each in (callback, other))
    assert torch.equal(one["input_ids"], two["input_ids"])
