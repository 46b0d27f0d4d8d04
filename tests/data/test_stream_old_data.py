"""Streams that read data of other tasks: joint training and replay."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from recall_lightning.data import DigitsStream, ReplayBuffer, TaskStream
from recall_lightning.measuring.candidates import draw_candidates, training_samples
from tests.data.test_stream import Countdown, Recorder, numbers, trainer, values


def three_tasks(**kwargs) -> TaskStream:
    """Task k trains on 100k..100k+9, or 100k+5 in the last task; 1000+100k onwards is held out."""
    pairs = [(numbers(100 * k, 6 if k == 2 else 10), numbers(1000 + 100 * k, 2)) for k in range(3)]
    return TaskStream.from_datasets(pairs, **{"batch_size": 4, "epochs_per_task": 2, **kwargs})


def loader_at(stream: TaskStream, epoch: int) -> DataLoader:
    stream.trainer = SimpleNamespace(  # type: ignore[assignment]
        current_epoch=epoch, distributed_sampler_kwargs=None
    )
    return stream.train_dataloader()


def batches(loader: DataLoader) -> list[list[int]]:
    return [batch.int().tolist() for (batch,) in loader]


def parted(batch: list[int], task: int) -> tuple[list[int], list[int]]:
    """New and replayed values of a batch."""
    return [v for v in batch if v // 100 == task], [v for v in batch if v // 100 != task]


# --- replay ---------------------------------------------------------------------------------------


def test_each_batch_is_the_tasks_own_and_as_many_stored_samples() -> None:
    stream, plain = three_tasks(replay=ReplayBuffer(capacity=7)), three_tasks()
    for epoch in range(6):
        task = epoch // 2
        served, own = batches(loader_at(stream, epoch)), batches(loader_at(plain, epoch))
        assert [parted(batch, task)[0] for batch in served] == own  # in the order of no replay
        for batch in served:
            replayed = parted(batch, task)[1]
            assert len(set(replayed)) == len(replayed) == (0 if task == 0 else 4)
            assert all(value // 100 < task for value in replayed)


def test_number_of_replayed_samples() -> None:
    stream = three_tasks(replay=ReplayBuffer(capacity=7, batch_size=2))
    assert [len(batch) for batch in batches(loader_at(stream, 2))] == [6, 6, 4]
    few = three_tasks(replay=ReplayBuffer(capacity=3))
    assert [len(batch) for batch in batches(loader_at(few, 2))] == [7, 7, 5]
    assert len(loader_at(few, 2)) == 3
    whole = three_tasks(replay=ReplayBuffer(capacity=7), drop_last=True)
    assert [len(batch) for batch in batches(loader_at(whole, 2))] == [8, 8]


def test_replayed_samples_are_those_of_the_buffer() -> None:
    stream = three_tasks(replay=ReplayBuffer(capacity=7), seed=5)
    stored = [int(value) for (value,) in stream.stored_samples(2)]
    replayed = {v for e in (4, 5) for b in batches(loader_at(stream, e)) for v in parted(b, 2)[1]}
    assert replayed <= set(stored)
    assert stream.stored_samples(0) is None
    assert three_tasks().stored_samples(2) is None
    assert len(stream.stored_samples(3)) == 7


def test_option_may_be_set_later_and_changed() -> None:
    stream = three_tasks()
    stream.replay = ReplayBuffer(capacity=7)
    assert len(stream.stored_samples(1)) == 7
    stream.replay = ReplayBuffer(per_task=2)
    assert len(stream.stored_samples(1)) == 2
    assert len(stream.stored_samples(2)) == 4


def test_candidates_are_the_tasks_own_samples() -> None:
    loader = loader_at(three_tasks(replay=ReplayBuffer(capacity=7)), 2)
    drawn = [int(value) for (batch,) in draw_candidates(loader, 100, seed=0) for value in batch]
    assert sorted(drawn) == list(range(100, 110))
    assert training_samples(loader) == 10


# --- joint training -------------------------------------------------------------------------------


def test_joint_epoch_is_as_long_as_its_task_and_samples_all_tasks() -> None:
    joint, plain = three_tasks(joint=True), three_tasks()
    seen = []
    for epoch in range(6):
        served = values(loader_at(joint, epoch))
        assert len(set(served)) == len(served)
        assert len(loader_at(joint, epoch)) == len(loader_at(plain, epoch))
        seen.append(sorted(served))
    assert len({tuple(served) for served in seen}) == 6
    assert [values(a) for a in joint.val_dataloader()] == [
        values(a) for a in plain.val_dataloader()
    ]


def test_joint_epochs_hold_all_tasks_in_proportion() -> None:
    stream = TaskStream.from_datasets(
        [(numbers(0, 300), numbers(0, 1)), (numbers(1000, 100), numbers(0, 1))],
        epochs_per_task=[1, 100], batch_size=50, joint=True,
    )  # fmt: skip
    shares = [sum(v < 1000 for v in values(loader_at(stream, epoch))) for epoch in range(1, 101)]
    # hypergeometric: of 100 drawn from 400 a mean of 75, a variance of 100 × 3/16 × 300/399
    assert abs(sum(shares) / 100 - 75) < 5 * (100 * 3 / 16 * 300 / 399 / 100) ** 0.5


# --- both -----------------------------------------------------------------------------------------

OPTIONS = [{"joint": True}, {"replay": ReplayBuffer(capacity=7)}]


@pytest.mark.parametrize("option", OPTIONS)
def test_order_depends_on_seed_and_epoch_alone(option) -> None:
    stream, before = three_tasks(**option), torch.get_rng_state()
    for epoch in (2, 5):
        loader = loader_at(stream, epoch)
        order = values(loader)
        assert order == values(loader) == values(loader_at(three_tasks(**option), epoch))
        assert order != values(loader_at(three_tasks(**option, seed=1), epoch))
    assert values(loader_at(stream, 2)) != values(loader_at(stream, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", OPTIONS)
def test_resumed_run_is_served_the_same(tmp_path, option) -> None:
    whole, resumed = Recorder(), Recorder()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit = trainer(max_epochs=6, callbacks=[saver], enable_checkpointing=True)
    fit.fit(whole, datamodule=three_tasks(**option))
    checkpoint = tmp_path / "epoch=2.ckpt"
    trainer(max_epochs=6).fit(resumed, datamodule=three_tasks(**option), ckpt_path=checkpoint)
    assert resumed.served == {epoch: whole.served[epoch] for epoch in (3, 4, 5)}


@pytest.mark.parametrize("option", OPTIONS)
def test_iterable_datasets_are_refused_before_training(option) -> None:
    pairs = [(numbers(0), numbers(0)), (Countdown(), Countdown())]
    stream = TaskStream.from_datasets(pairs, **option)
    with pytest.raises(MisconfigurationException, match=r"task 1.*Countdown.*map-style"):
        trainer(max_epochs=2).fit(Recorder(), datamodule=stream)


def test_both_at_once_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="exclude each other"):
        three_tasks(joint=True, replay=ReplayBuffer())
    stream = three_tasks(replay=ReplayBuffer())
    stream.joint = True
    with pytest.raises(MisconfigurationException, match="exclude each other"):
        stream.setup("fit")


def test_replay_in_several_processes_is_refused() -> None:
    stream = three_tasks(replay=ReplayBuffer())
    stream.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=2, reload_dataloaders_every_n_epochs=1, fast_dev_run=False, max_epochs=6
    )
    with pytest.raises(MisconfigurationException, match=r"has 2: set Trainer\(devices=1\)"):
        stream.setup("fit")
    stream.replay = None
    stream.setup("fit")


def test_shipped_streams_take_the_options() -> None:
    stream = DigitsStream(scenario="split", replay=ReplayBuffer(50, "class_balanced"))
    labels = [int(label) for _, label in stream.stored_samples(4)]
    assert torch.tensor(labels).bincount().tolist() == [50 // 8] * 8
    # an image of 8 by 8 in float32, and its label in int64
    assert stream.stored_samples(4).nbytes == 48 * (64 * 4 + 8)
