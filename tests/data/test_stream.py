from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from recall_lightning.data import TaskStream


def numbers(first: int, count: int = 12) -> TensorDataset:
    return TensorDataset(torch.arange(first, first + count).float())


def two_tasks(**kwargs) -> TaskStream:
    """Task 0 trains on 0..11, task 1 on 100..111; 1000 and 1100 onwards are held out."""
    pairs = [(numbers(0), numbers(1000, 4)), (numbers(100), numbers(1100, 4))]
    return TaskStream.from_datasets(pairs, **{"batch_size": 4, "epochs_per_task": 2, **kwargs})


def values(loader: DataLoader) -> list[int]:
    return [int(x) for (batch,) in loader for x in batch]


class Recorder(LightningModule):
    """Trains on nothing and remembers what it was served in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.served: dict[int, list[int]] = {}
        self.validated: dict[tuple[int, int], list[int]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.served.setdefault(self.current_epoch, []).extend(batch[0].int().tolist())
        return self.weight * batch[0].mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        key = self.current_epoch, dataloader_idx
        self.validated.setdefault(key, []).extend(batch[0].int().tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**kwargs) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 4,
        "reload_dataloaders_every_n_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **kwargs})


# --- which task an epoch belongs to ---------------------------------------------------------------


def test_epochs_are_dealt_out_in_order() -> None:
    stream = two_tasks(epochs_per_task=[1, 3])
    assert (stream.num_tasks, stream.total_epochs, stream.first_epochs) == (2, 4, [0, 1])
    assert [stream.task_at(epoch) for epoch in range(4)] == [0, 1, 1, 1]


def test_task_at_stays_with_the_last_task_and_refuses_negative_epochs() -> None:
    assert two_tasks().task_at(1000) == 1
    with pytest.raises(ValueError, match="-1"):
        two_tasks().task_at(-1)


# --- what is served -------------------------------------------------------------------------------


def test_fit_serves_each_task_in_its_epochs_and_validates_all_from_the_start() -> None:
    model = Recorder()
    trainer().fit(model, datamodule=two_tasks())
    for epoch in range(4):
        first = 0 if epoch < 2 else 100
        assert sorted(model.served[epoch]) == list(range(first, first + 12))
        assert model.validated[epoch, 0] == [1000, 1001, 1002, 1003]
        assert model.validated[epoch, 1] == [1100, 1101, 1102, 1103]


@pytest.mark.parametrize("epochs_before", [1, 2])
def test_resumed_run_is_served_the_same(tmp_path, epochs_before: int) -> None:
    whole, resumed = Recorder(), Recorder()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(callbacks=[saver], enable_checkpointing=True).fit(whole, datamodule=two_tasks())
    checkpoint = tmp_path / f"epoch={epochs_before - 1}.ckpt"
    trainer().fit(resumed, datamodule=two_tasks(), ckpt_path=checkpoint)
    assert resumed.served == {e: whole.served[e] for e in range(epochs_before, 4)}


def test_order_depends_on_seed_and_epoch_alone() -> None:
    stream = two_tasks()
    loader = stream.train_dataloader()
    order = values(loader)
    torch.rand(3)
    assert order == values(loader) == values(two_tasks().train_dataloader())
    assert order != sorted(order)
    assert order != values(two_tasks(seed=1).train_dataloader())
    stream.trainer = SimpleNamespace(current_epoch=1, distributed_sampler_kwargs=None)
    assert values(stream.train_dataloader()) != order
    # and not on the sum of the two
    assert values(stream.train_dataloader()) != values(two_tasks(seed=1).train_dataloader())


def test_global_rng_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream = TaskStream.from_datasets([numbers(0), numbers(100)])
    for loader in [stream.train_dataloader(), *stream.val_dataloader()]:
        values(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_processes_share_the_samples_unless_told_not_to(use_distributed_sampler: bool) -> None:
    stream = two_tasks()
    stream.trainer = SimpleNamespace(
        current_epoch=0,
        distributed_sampler_kwargs={"num_replicas": 2, "rank": 1},
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=use_distributed_sampler),
    )
    assert len(values(stream.train_dataloader())) == (6 if use_distributed_sampler else 12)


def test_loaders_follow_the_arguments() -> None:
    stream = two_tasks(
        batch_size=5, eval_batch_size=3, drop_last=True, collate_fn=lambda samples: len(samples)
    )
    assert list(stream.train_dataloader()) == [5, 5]
    assert list(stream.val_dataloader()[0]) == [3, 1]
    assert next(iter(two_tasks(batch_size=3).val_dataloader()[0]))[0].shape == (3,)


def test_datasets_are_built_once() -> None:
    class Counting(TaskStream):
        task_names = ["only"]
        built: list[str] = []

        def train_dataset(self, task: int) -> Dataset:
            self.built.append("train")
            return numbers(0)

        def val_dataset(self, task: int) -> Dataset:
            self.built.append("val")
            return numbers(0)

    stream = Counting()
    assert stream.built == []
    for _ in range(2):
        stream.train_dataloader()
        stream.val_dataloader()
    assert sorted(stream.built) == ["train", "val"]


class Countdown(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter([3, 2, 1])


def test_iterable_dataset_is_served_in_its_own_order() -> None:
    stream = TaskStream.from_datasets([(Countdown(), Countdown())], batch_size=1)
    assert [int(batch) for batch in stream.train_dataloader()] == [3, 2, 1]


# --- from_datasets --------------------------------------------------------------------------------


def test_part_of_a_single_dataset_is_held_out() -> None:
    stream = TaskStream.from_datasets([numbers(0, 20)], val_fraction=0.25, seed=3)
    train, val = values(stream.train_dataloader()), values(stream.val_dataloader()[0])
    assert len(val) == 5
    assert sorted(train + val) == list(range(20))
    again = TaskStream.from_datasets([numbers(0, 20)], val_fraction=0.25, seed=3)
    assert values(again.val_dataloader()[0]) == val


def test_probes_are_validated_behind_the_tasks_and_never_trained() -> None:
    stream = two_tasks(probes={"before": numbers(500, 3)})
    assert (stream.task_names, stream.probe_names) == (["task 0", "task 1"], ["before"])
    assert values(stream.val_dataloader()[2]) == [500, 501, 502]
    assert not set(values(stream.train_dataloader())) & {500, 501, 502}
    with pytest.raises(MisconfigurationException, match="unique"):
        two_tasks(probes={"task 1": numbers(500, 3)})


def test_names() -> None:
    assert two_tasks().task_names == ["task 0", "task 1"]
    assert two_tasks(names=["a", "b"]).task_names == ["a", "b"]


@pytest.mark.parametrize(
    ("datasets", "kwargs", "message"),
    [
        ([numbers(0)], {"names": ["a", "b"]}, "2 names were given for 1 datasets"),
        ([numbers(0), numbers(0)], {"names": ["a", "a"]}, "unique"),
        ([], {}, "not empty"),
        ([Countdown()], {}, "Countdown.*tuple"),
        ([(numbers(0),)], {}, "tuple of 1"),
        ([numbers(0)], {"val_fraction": 0.0}, "val_fraction=0.0 holds 0 of 12"),
        ([numbers(0)], {"val_fraction": 1.0}, "val_fraction=1.0 holds 12 of 12"),
    ],
)
def test_bad_datasets(datasets, kwargs, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TaskStream.from_datasets(datasets, **kwargs)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [0, -1, True, 1.5, "2", [1, 0], [1, True], [1], [1, 1, 1]])
def test_bad_epochs_per_task(epochs) -> None:
    with pytest.raises(MisconfigurationException, match="epochs_per_task"):
        two_tasks(epochs_per_task=epochs)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_bad_batch_size(name: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"{name}=0"):
        two_tasks(**{name: 0})


@pytest.mark.parametrize("every", [0, 2])
def test_trainer_that_would_serve_the_wrong_task(every: int) -> None:
    with pytest.raises(
        MisconfigurationException, match=f"reload_dataloaders_every_n_epochs={every}"
    ):
        trainer(reload_dataloaders_every_n_epochs=every).fit(Recorder(), datamodule=two_tasks())


def test_trainer_that_stops_early() -> None:
    message = "max_epochs=3 does not cover the stream: 2 tasks of 1, 3 epochs need 4"
    with pytest.raises(MisconfigurationException, match=message):
        trainer(max_epochs=3).fit(Recorder(), datamodule=two_tasks(epochs_per_task=[1, 3]))


def test_trainer_that_goes_on_warns_and_stays_with_the_last_task() -> None:
    model = Recorder()
    with pytest.warns(UserWarning, match="max_epochs=5 is more than the stream's 4 epochs"):
        trainer(max_epochs=5).fit(model, datamodule=two_tasks())
    assert min(model.served[4]) == 100


@pytest.mark.parametrize(
    "limits", [{"max_epochs": -1, "max_steps": 2}, {"max_epochs": None, "max_steps": 2}]
)
def test_unlimited_epochs_are_allowed(limits, recwarn) -> None:
    trainer(**limits).fit(Recorder(), datamodule=two_tasks())
    assert not [warning for warning in recwarn if "max_epochs" in str(warning.message)]


def test_fast_dev_run_and_validate_need_no_epochs() -> None:
    trainer(fast_dev_run=True).fit(Recorder(), datamodule=two_tasks())
    trainer(max_epochs=1, reload_dataloaders_every_n_epochs=0).validate(
        Recorder(), datamodule=two_tasks(), verbose=False
    )


def test_tasks_may_come_back_in_an_order_of_their_own():
    stream = two_tasks(order=[0, 1, 0], epochs_per_task=[1, 2, 1])
    assert [stream.task_at(epoch) for epoch in range(5)] == [0, 1, 1, 0, 0]
    assert (stream.first_epochs, stream.total_epochs) == ([0, 1, 3], 4)
    assert stream.end_task_after(1) == 1
    assert [stream.task_at(epoch) for epoch in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("order", [[0, 0, 1], [0], [0, 1, 2], []])
def test_an_order_that_leaves_a_task_out_or_has_one_twice_in_a_row_is_refused(order):
    with pytest.raises(MisconfigurationException, match="must hold each of the tasks' indices"):
        two_tasks(order=order)


@pytest.mark.parametrize("names", [[2019, 2020], ["a", None]])
def test_names_that_are_no_texts_are_refused(names):
    with pytest.raises(MisconfigurationException, match="must be texts, unique"):
        two_tasks(names=names)


def test_a_task_without_a_batch_is_refused_where_datasets_are_given():
    data = [TensorDataset(torch.zeros(n, 2)) for n in (8, 3)]
    with pytest.raises(MisconfigurationException, match="'task 1' has 3 training samples"):
        TaskStream.from_datasets([(d, d) for d in data], batch_size=4, drop_last=True)
