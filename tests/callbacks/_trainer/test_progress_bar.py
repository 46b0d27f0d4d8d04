import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from recall_lightning import RecallCallback, TaskAwareCallback
from recall_lightning.callbacks._trainer.progress_bar import hide_items, show_items
from tests.support.training import Plain, loader, quiet_trainer


class Bar(TQDMProgressBar):
    """Keeps what it showed last."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.shown = self.get_metrics(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)


class Counts(TaskAwareCallback):
    def progress_bar_items(self, trainer):
        return {**super().progress_bar_items(trainer), "steps": str(self.step_in_task)}


def users_own(trainer, pl_module):
    return {"mine": 1}


def fit(bar, *callbacks, **kwargs):
    trainer = quiet_trainer(bar, *callbacks, enable_progress_bar=True, **kwargs)
    trainer.fit(Plain(), loader(0), loader(0, shuffle=False))
    return trainer


def test_the_bar_shows_the_items_of_all_callbacks_in_front_of_its_own():
    bar = Bar()
    fit(bar, Counts(), RecallCallback(every=1.0, end_rule=None))
    shown = {"task": "task 0", "merges": "1", "steps": "8"}
    assert bar.shown.items() >= shown.items()
    assert set(list(bar.shown)[:3]) == set(shown)


def test_of_two_items_with_one_label_the_first_callbacks_is_shown():
    class Renames(Counts):
        def progress_bar_items(self, trainer):
            return {"steps": "many"}

    bar = Bar()
    fit(bar, Renames(), Counts())
    assert bar.shown["steps"] == "many"


def test_nothing_stays_patched_after_a_fit():
    bar = Bar()
    fit(bar, Counts(), RecallCallback())
    assert "get_metrics" not in vars(bar)


def test_a_users_override_is_shown_and_outlives_several_fits_of_several_callbacks():
    bar, model = Bar(), Plain()
    bar.get_metrics = users_own
    trainer = fit(bar, Counts(), RecallCallback())
    assert bar.shown.keys() == {"task", "steps", "merges", "mine"}
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, loader(1))
    fit(bar, Counts())
    assert bar.shown.keys() == {"task", "steps", "mine"}
    trainer.validate(model, loader(0, shuffle=False), verbose=False)
    assert bar.get_metrics is users_own


def test_a_fit_that_failed_leaves_no_second_patch_to_the_next():
    class Fails(Plain):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("interrupted")

    bar = Bar()
    bar.get_metrics = users_own
    trainer = quiet_trainer(bar, Counts(), enable_progress_bar=True)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(Fails(), loader(0))
    fit(bar, Counts())
    assert bar.get_metrics is users_own


def test_an_override_that_came_while_items_were_shown_is_left():
    bar = Bar()
    show_items(bar, lambda trainer: {})
    bar.get_metrics = users_own
    hide_items(bar)
    assert bar.get_metrics is users_own


def test_no_bar_is_no_matter():
    show_items(None, lambda trainer: {})
    hide_items(None)
