from functools import partial

import torch
from torch.utils.data import DataLoader

from tests.support.callbacks import assert_fails_at_start, recall
from tests.support.training import Plain, loader, quiet_trainer, task_data


class Logs(Plain):
    """A forward that logs and draws random numbers."""

    def forward(self, inputs):
        self.log("noise", torch.rand(()))
        return self.net(inputs)


def test_what_a_forward_logs_while_probed_is_not_logged():
    trainer = quiet_trainer(recall())
    trainer.fit(Logs(), loader(0))
    assert "noise" not in trainer.callback_metrics


def test_a_log_method_of_the_users_own_outlives_a_probe():
    module = Plain()
    module.log = own = partial(module.log, batch_size=8)
    quiet_trainer(recall(every=4)).fit(module, loader(0))
    assert module.log is own


def test_inputs_that_cannot_be_found_say_what_to_pass_and_passing_it_helps():
    class Named(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["image"], batch["label"]), batch_idx)

    data = [{"image": x, "label": y} for x, y in task_data(0)]
    loading = DataLoader(data, batch_size=8)
    assert_fails_at_start(Named(), loading, "entries image, label.*pass view=lambda module, batch")
    callback = recall(every=0.5, view=lambda module, batch: module.net(batch["image"]))
    quiet_trainer(callback).fit(Named(), loading)
    assert len(callback.history) == 2


def test_a_view_that_fails_is_blamed_itself():
    assert_fails_at_start(
        Plain(), loader(0), "your view could not be run.*list.*TypeError",
        view=lambda module, batch: module.net(batch["x"]),
    )  # fmt: skip
