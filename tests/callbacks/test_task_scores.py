"""Every way in which a module may log its score: each dataloader's own one, or refused."""

import csv
import math
import sys

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import (
    Accuracy,
    F1Score,
    MaxMetric,
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
)

from recall_lightning import ForgettingMonitor, TaskStream
from recall_lightning.callbacks.early_stopping import TaskEarlyStopping
from tests.support.processes import run_ranks
from tests.support.training import Plain, loader, task_data

SIZES = (40, 56, 24)  # of the validation data; the last batch is smaller


def accuracy():
    return Accuracy(task="multiclass", num_classes=2)


class Scores(Plain):
    """Scores are what ``score`` logs; a batch's labels come from the dataloader's index."""

    def __init__(self):
        super().__init__()
        self.acc = accuracy()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.score(self.net(batch[0]), batch[1], batch_idx, dataloader_idx)


def validation():
    return [
        DataLoader(task_data(task, samples), batch_size=16) for task, samples in enumerate(SIZES)
    ]


def truth(model):
    scores = []
    for each in validation():
        inputs, labels = each.dataset.tensors
        with torch.no_grad():
            scores.append(float((model.net(inputs).argmax(1) == labels).float().mean()))
    return scores


def fit(model, *callbacks, monitor="val/acc", folder=None, **kwargs):
    """One fit under Lightning's own sanity check, logger and checkpoints."""
    torch.manual_seed(0)
    monitor = ForgettingMonitor(monitor) if isinstance(monitor, str) else monitor
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        callbacks=[monitor, *callbacks],
        **{"max_epochs": 2, "default_root_dir": folder, **quiet, **kwargs},
    )
    trainer.fit(model, loader(0), validation())
    return trainer, monitor


class LogsTheObject(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc(logits, labels)
        self.log("val/acc", self.acc)


class LogsAnUpdatedObject(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc.update(logits, labels)
        self.log("val/acc", self.acc, on_step=True, on_epoch=True, prog_bar=True, logger=False)


class LogsACollection(Scores):
    def __init__(self):
        super().__init__()
        both = {"acc": accuracy(), "f1": F1Score(task="multiclass", num_classes=2)}
        self.both = MetricCollection(both, prefix="val/")

    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.both.update(logits, labels)
        self.log_dict(self.both)


class CallsACollection(LogsACollection):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.log_dict(self.both(logits, labels))


class MakesTheObjectLate(Scores):
    """One object a dataloader, made when it is first needed."""

    def __init__(self):
        super().__init__()
        self.accs = torch.nn.ModuleDict()

    def score(self, logits, labels, batch_idx, dataloader_idx):
        if str(dataloader_idx) not in self.accs:
            self.accs[str(dataloader_idx)] = accuracy()
        each = self.accs[str(dataloader_idx)]
        each.update(logits, labels)
        self.log("val/acc", each, metric_attribute=f"accs.{dataloader_idx}")


class NamesItsLoaders(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc(logits, labels)
        self.log(f"val_{dataloader_idx}/acc", self.acc, add_dataloader_idx=False)


class NamesThemTwice(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc(logits, labels)
        self.log(f"val_{dataloader_idx}/acc", self.acc)


class ResetsItself(Scores):
    """The workaround that is known."""

    def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.acc.reset()

    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc.update(logits, labels)
        self.log("val/acc", self.acc)


class ComputesPerLoader(Scores):
    """Without an object being logged, and with a reset: nothing is carried over."""

    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc.update(logits, labels)
        if batch_idx == math.ceil(SIZES[dataloader_idx] / 16) - 1 or self.trainer.sanity_checking:
            self.log("val/acc", self.acc.compute(), batch_size=1)
            self.acc.reset()


class LogsAtTheEnd(Scores):
    """Objects of a dataloader's own, computed after the last one."""

    def __init__(self):
        super().__init__()
        self.accs = torch.nn.ModuleList(accuracy() for _ in SIZES)

    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.accs[dataloader_idx].update(logits, labels)

    def on_validation_epoch_end(self):
        for index, each in enumerate(self.accs):
            self.log(f"val_{index}/acc", each.compute())
            each.reset()


IDIOMS = [
    (LogsTheObject, "val/acc"),
    (LogsAnUpdatedObject, "val/acc"),
    (LogsAnUpdatedObject, "val/acc_epoch"),
    (LogsACollection, "val/acc"),
    (CallsACollection, "val/acc"),
    (MakesTheObjectLate, "val/acc"),
    (NamesItsLoaders, "val_{idx}/acc"),
    (NamesThemTwice, "val_{idx}/acc"),
    (ResetsItself, "val/acc"),
    (ComputesPerLoader, "val/acc"),
    (LogsAtTheEnd, "val_{idx}/acc"),
]


@pytest.mark.parametrize(
    ("module", "monitor"), IDIOMS, ids=lambda each: getattr(each, "__name__", each)
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_every_dataloaders_score_is_its_own(module, monitor, sanity, tmp_path):
    model = module()
    _, monitor = fit(model, monitor=monitor, folder=tmp_path, num_sanity_val_steps=sanity)
    assert monitor.matrix == [pytest.approx(truth(model))]


def test_so_is_what_the_users_own_logger_and_callbacks_read(tmp_path):
    class Best(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                names = [f"val/acc/dataloader_idx_{index}" for index in range(3)]
                self.seen = [float(trainer.callback_metrics[name]) for name in names]

    model, best = LogsTheObject(), Best()
    saver = ModelCheckpoint(monitor="val/acc/dataloader_idx_2", mode="max")
    trainer, _ = fit(model, best, saver, logger=CSVLogger(tmp_path), folder=tmp_path)
    assert best.seen == pytest.approx(truth(model))
    with open(f"{trainer.logger.log_dir}/metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    names = [f"val/acc/dataloader_idx_{index}" for index in range(3)]
    logged = [float(next(line[n] for line in reversed(lines) if line[n])) for n in names]
    assert logged == pytest.approx(best.seen)
    assert saver.best_model_score >= best.seen[2]


class HydraTemplate(LogsTheObject):
    """The best total so far, of all dataloaders, beside each one's own."""

    def __init__(self):
        super().__init__()
        self.loss, self.best = MeanMetric(), MaxMetric()
        self.totals = []

    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.loss(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        self.log("val/loss", self.loss, prog_bar=True)
        super().score(logits, labels, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self):
        total = self.acc.compute()
        self.best(total)
        self.log("val/acc_best", self.best.compute())
        self.log("val/acc_all", self.acc)
        self.totals.append((float(total), self.acc.update_count))


def test_a_total_over_all_dataloaders_is_what_it_was(tmp_path):
    model = HydraTemplate()
    trainer, monitor = fit(model, folder=tmp_path)
    each = truth(model)
    whole = sum(score * size for score, size in zip(each, SIZES, strict=True)) / sum(SIZES)
    batches = sum(math.ceil(size / 16) for size in SIZES)
    assert model.totals[-1] == (pytest.approx(whole), batches)
    assert float(trainer.callback_metrics["val/acc_all"]) == pytest.approx(whole)
    assert monitor.matrix == [pytest.approx(each)]


def test_objects_of_one_dataloader_each_come_through_untouched(tmp_path):
    class Own(LogsAtTheEnd):
        def score(self, logits, labels, batch_idx, dataloader_idx):
            super().score(logits, labels, batch_idx, dataloader_idx)
            self.log("val/acc", self.accs[dataloader_idx])

        def on_validation_epoch_end(self):
            self.at_the_end = [float(each.compute()) for each in self.accs]

    model = Own()
    _, monitor = fit(model, folder=tmp_path)
    assert model.at_the_end == pytest.approx(truth(model))
    assert monitor.matrix == [pytest.approx(truth(model))]


class Last(Metric):
    """States that nobody can put together: the last score, however many there were."""

    full_state_update = True

    def __init__(self):
        super().__init__()
        self.add_state("share", torch.tensor(0.0), dist_reduce_fx=None)

    def update(self, logits, labels):
        self.share = (logits.argmax(1) == labels).float().mean()

    def compute(self):
        return self.share


def test_a_total_that_cannot_be_put_together_is_refused(tmp_path):
    class Totals(LogsTheObject):
        def __init__(self, total):
            super().__init__()
            self.acc, self.total = Last(), total

        def on_validation_epoch_end(self):
            if self.total:
                self.log("val/all", self.acc)

    fit(Totals(total=False), folder=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"one Last is logged for several.*ModuleL"):
        fit(Totals(total=True), folder=tmp_path)


class ComputesOverAll(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc.update(logits, labels)
        self.log("val/acc", self.acc.compute())


class ComputesALooseObject(ComputesOverAll):
    def __init__(self):
        super().__init__()
        del self.acc
        self.metrics = {"acc": accuracy()}

    @property
    def acc(self):
        return self.metrics["acc"]


class ComputesALateObject(ComputesALooseObject):
    def __init__(self):
        super().__init__()
        self.metrics = {}

    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.metrics.setdefault("acc", accuracy())
        super().score(logits, labels, batch_idx, dataloader_idx)


class ComputesACollection(LogsACollection):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.both.update(logits, labels)
        self.log_dict(self.both.compute())


class LogsOnce(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.acc.update(logits, labels)

    def on_validation_epoch_end(self):
        self.log("val/acc", self.acc.compute())


class LogsTheBestBatch(Scores):
    reduction, kwargs = "max", {}

    def score(self, logits, labels, batch_idx, dataloader_idx):
        share = (logits.argmax(1) == labels).float().mean()
        self.log("val/acc", share, reduce_fx=self.reduction, **self.kwargs)


class LogsTheSum(LogsTheBestBatch):
    reduction = sum


class LogsSteps(LogsTheBestBatch):
    reduction, kwargs = "mean", {"on_step": True, "on_epoch": False}


class LogsOnRankZero(LogsTheBestBatch):
    reduction, kwargs = "mean", {"rank_zero_only": True}


class OneNameForAll(LogsTheBestBatch):
    reduction, kwargs = "mean", {"add_dataloader_idx": False}


class LeavesOneOut(LogsTheBestBatch):
    reduction = "mean"

    def score(self, logits, labels, batch_idx, dataloader_idx):
        if dataloader_idx != 1:
            super().score(logits, labels, batch_idx, dataloader_idx)


class CountsFromOne(Scores):
    def score(self, logits, labels, batch_idx, dataloader_idx):
        self.log(f"val_{dataloader_idx + 1}/acc", 0.5, add_dataloader_idx=False)
        self.log("val_0/acc", 0.5)


@pytest.mark.parametrize(
    ("module", "monitor", "said"),
    [
        (
            ComputesOverAll,
            "val/acc",
            "'val/acc' is computed by one MulticlassAccuracy over several",
        ),
        (ComputesALooseObject, "val/acc", "by one MulticlassAccuracy over several .*ModuleList"),
        (ComputesALateObject, "val/acc", "by one MulticlassAccuracy over several"),
        (ComputesACollection, "val/acc", "by one MulticlassAccuracy over several"),
        (LogsOnce, "val/acc", r"logged once for all 3 .*\(in on_validation_epoch_end\): log it in"),
        (LogsTheBestBatch, "val/acc", "logged with reduce_fx='max' over batches.*: log a mean"),
        (LogsTheSum, "val/acc", "reduce_fx='sum'"),
        (LogsSteps, "val/acc", "logged with on_epoch=False.*: log it with on_epoch=True"),
        (LogsOnRankZero, "val/acc", "rank_zero_only=True.*: leave it out"),
        (OneNameForAll, "val/acc", "twice in `validation_step` with different arguments"),
        (LeavesOneOut, "val/acc", "for validation dataloader 0, and not for dataloader 1: log it"),
        (CountsFromOne, "val_{idx}/acc", "'val_1/acc' was logged for validation dataloader 0, not"),
    ],
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_what_is_no_dataloaders_score_is_refused_before_training(
    module, monitor, said, sanity, tmp_path
):
    torch.manual_seed(0)
    model = module()
    with pytest.raises(MisconfigurationException, match=said):
        fit(model, monitor=monitor, folder=tmp_path, num_sanity_val_steps=sanity)
    # a dataloader may have its score with a later batch than those of a sanity check
    assert not sanity or model.trainer.global_step == 0 or module is LeavesOneOut


def test_a_running_total_beside_the_score_is_none_of_our_business(tmp_path):
    class Beside(LogsTheObject):
        def __init__(self):
            super().__init__()
            self.overall = accuracy()

        def score(self, logits, labels, batch_idx, dataloader_idx):
            super().score(logits, labels, batch_idx, dataloader_idx)
            self.overall.update(logits, labels)
            self.log("val/overall", self.overall.compute(), add_dataloader_idx=True)

    class BesideANumber(Beside):
        def score(self, logits, labels, batch_idx, dataloader_idx):
            self.overall.update(torch.eye(2)[labels], labels)
            self.log("val/overall", self.overall.compute())
            self.log("val/acc", 1.0)  # as if all were right, as the total says too

    model = Beside()
    _, monitor = fit(model, folder=tmp_path)
    assert monitor.matrix == [pytest.approx(truth(model))]
    assert fit(BesideANumber(), folder=tmp_path)[1].matrix == [[1.0, 1.0, 1.0]]


def test_what_training_or_an_earlier_validation_left_under_the_name_is_not_read(tmp_path):
    class Once(Plain):
        def training_step(self, batch, batch_idx):
            self.log("val/acc", 0.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 0:
                self.log("val/acc", 1.0)

    monitor = ForgettingMonitor("val/acc")
    trainer = Trainer(
        callbacks=[monitor], max_epochs=2, default_root_dir=tmp_path, accelerator="cpu"
    )
    with pytest.raises(MisconfigurationException, match="was not logged for validation dataloader"):
        trainer.fit(Once(), loader(0), loader(0))
    assert [each["scores"] for each in monitor.record.measurements] == [[1.0]]


def test_a_sanity_check_without_the_metric_warns(tmp_path):
    class Later(LogsTheObject):
        def score(self, logits, labels, batch_idx, dataloader_idx):
            if not self.trainer.sanity_checking:
                super().score(logits, labels, batch_idx, dataloader_idx)

    model = Later()
    with pytest.warns(UserWarning, match="'val/acc' was not logged in the sanity check for"):
        _, monitor = fit(model, folder=tmp_path)
    assert monitor.matrix == [pytest.approx(truth(model))]


def test_a_monitor_that_names_one_dataloader_is_refused():
    with pytest.raises(MisconfigurationException, match="leave the end out, monitor='val/acc'"):
        ForgettingMonitor("val/acc/dataloader_idx_0")


def test_a_direction_told_from_a_name_against_the_objects_own_is_refused(tmp_path):
    class Misnamed(Scores):
        def __init__(self):
            super().__init__()
            self.acc = MeanSquaredError()

        def score(self, logits, labels, batch_idx, dataloader_idx):
            self.acc(logits[:, 1], labels.float())
            self.log("val/score", self.acc)

    with pytest.raises(MisconfigurationException, match=r"MeanSquaredError.* pass mode='min'"):
        fit(Misnamed(), monitor="val/score", folder=tmp_path)
    fit(Misnamed(), monitor=ForgettingMonitor("val/score", mode="min"), folder=tmp_path)


def test_early_stopping_alone_reads_the_tasks_own_score(tmp_path):
    class Fixed(LogsTheObject):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(8, 2)
            torch.nn.init.zeros_(self.net.weight)
            self.net.bias.data = torch.tensor([1.0, 0.0])  # always class 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    labels = (torch.zeros(32).long(), torch.ones(32).long())
    pairs = [(TensorDataset(torch.randn(32, 8), each),) * 2 for each in labels]
    stream = TaskStream.from_datasets(pairs, batch_size=8, epochs_per_task=1)
    stopping = TaskEarlyStopping("val/acc")
    Trainer(
        callbacks=[stopping], max_epochs=2, reload_dataloaders_every_n_epochs=1,
        default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False,
    ).fit(Fixed(), datamodule=stream)  # fmt: skip
    assert stopping.best == 0.0  # of the second task, half of which would be right with the first


@pytest.mark.processes
@pytest.mark.parametrize("synced", ["synced", ""])
def test_numbers_of_two_processes_are_gathered_whether_lightning_was_told_to_or_not(
    synced, tmp_path
):
    run_ranks(__name__, synced, folder=tmp_path)


class Halves(Plain):
    """Rank 0 has 1 sample with a score of 0, rank 1 has 3 with a score of 1."""

    synced = False

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        score = torch.tensor(float(self.global_rank)) + dataloader_idx
        weight = 1 + 2 * self.global_rank
        self.log("val/acc", score, batch_size=weight, sync_dist=self.synced)


if __name__ == "__main__":
    halves, monitor = Halves(), ForgettingMonitor("val/acc")
    halves.synced = bool(sys.argv[1])
    Trainer(callbacks=[monitor], max_epochs=1, accelerator="cpu", strategy="ddp", devices=2).fit(
        halves, loader(0), [loader(0), loader(1)]
    )
    assert monitor.matrix == [pytest.approx([0.75, 1.75])], monitor.matrix
