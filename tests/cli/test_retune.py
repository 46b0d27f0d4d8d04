"""``recall-lightning retune``: from a checkpoint on disk to others."""

import pytest
import torch

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.cli.main import main
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.weights.lightning_checkpoint import read_checkpoint
from tests.support.training import Plain, loader, quiet_trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "end.ckpt"
    trainer = quiet_trainer(RecallCallback(keep_live=True))
    trainer.fit(Plain(), loader(0))
    trainer.save_checkpoint(path)
    return path


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(["retune", *map(str, args)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("recall-lightning retune: error:")
    assert said.count("\n") == 1
    return said


def history(path):
    return read_checkpoint(path)["callbacks"]["RecallCallback"]["history"]


def test_one_share_makes_one_checkpoint_that_a_trainer_reads(checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "more.ckpt"
    main(["retune", str(checkpoint), "--plasticity", "0.5", "--out", str(out)])
    assert f"{out}: 50 % to be left, the old counts" in capsys.readouterr().out
    assert history(out)[-1]["plasticity"] == 0.5
    assert history(checkpoint)[-1]["plasticity"] != 0.5
    trainer = quiet_trainer(RecallCallback(keep_live=True), max_epochs=2)
    trainer.fit(Plain(), loader(0), ckpt_path=out)


def test_scores_of_before_are_said_to_be_that(tmp_path, capsys):
    torch.manual_seed(0)
    monitor = ForgettingMonitor("val/acc")
    trainer = quiet_trainer(RecallCallback(keep_live=True), monitor)
    trainer.fit(Plain(), loader(0), [loader(0, 64, shuffle=False)])
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    capsys.readouterr()
    out = tmp_path / "new.ckpt"
    main(["retune", str(tmp_path / "end.ckpt"), "--plasticity", "0.5", "--out", str(out)])
    said = capsys.readouterr().out
    assert "the scores in it are from before" in said
    assert f"recall-lightning validate -c RECIPE --ckpt_path={out} does it" in said
    of_before, of_new = (
        TaskRecord.of_state(read_checkpoint(path)["callbacks"]["ForgettingMonitor"]["record"])
        for path in (tmp_path / "end.ckpt", out)
    )
    assert "before retuning" not in of_before.table()
    assert "after task 0, before retuning" in of_new.table()
    assert of_new.matrix == of_before.matrix


def test_several_shares_make_several(checkpoint, tmp_path):
    out = tmp_path / "all"
    main(["retune", str(checkpoint), "--plasticity", "0.5", "0.9", "--out", str(out)])
    made = {path.name: history(path)[-1]["keep"] for path in out.iterdir()}
    assert made["end-plasticity=0.5.ckpt"] > made["end-plasticity=0.9.ckpt"]


def test_without_a_share_it_shows_what_was_tried(checkpoint, capsys):
    main(["retune", str(checkpoint)])
    shown = capsys.readouterr().out
    tried = len(history(checkpoint)[-1]["front"])
    assert shown.count(" times ") == tried + 1
    assert "the last line was merged" in shown


def test_what_is_wrong_is_one_line_and_nothing_is_written(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.ckpt"
    assert "belong together" in refused(capsys, checkpoint, "--plasticity", "0.5")
    assert "plasticity=95" in refused(capsys, checkpoint, "--plasticity", "95", "--out", out)
    twice = ["--plasticity", "0.5", "0.5", "--out", out]
    assert "a share twice" in refused(capsys, checkpoint, *twice)
    assert "there is no file" in refused(
        capsys, tmp_path / "x.ckpt", "--plasticity", 0.5, "--out", out
    )
    for content, why in (("", "it is empty"), ("hello", "it is damaged, or something else")):
        (tmp_path / "text.ckpt").write_text(content)
        said = refused(capsys, tmp_path / "text.ckpt")
        assert f"text.ckpt cannot be read as a checkpoint ({why}): name another" in said
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt", _use_new_zipfile_serialization=False)
    assert "no state of RecallCallback" in refused(capsys, tmp_path / "plain.ckpt")
    out.write_text("something else")
    assert "exist" in refused(capsys, checkpoint, "--plasticity", "0.5", "--out", out)
    assert out.read_text() == "something else"


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["history"][-1].update(front=[{"keep": 1.0}]),
        lambda state: state["history"][-1].pop("front"),
        lambda state: state["history"].clear(),
        lambda state: state["snapshots"].clear(),
        lambda state: state["last_merge"]["made_from"]["measured"].clear(),
        lambda state: state["last_merge"]["made_from"]["measured"][0].pop("old_moments"),
        lambda state: state["last_merge"]["made_from"]["measured"][0]["old_moments"].clear(),
        lambda state: state["last_merge"].update(rule={"name": ["uniform"]}),
        lambda state: state["last_merge"]["made_from"]["new"].update(other=[1]),
    ],
)
def test_whatever_is_damaged_is_told_in_one_line(damage, checkpoint, tmp_path, capsys):
    broken = read_checkpoint(checkpoint)
    damage(broken["callbacks"]["RecallCallback"])
    torch.save(broken, tmp_path / "broken.ckpt")
    refused(capsys, tmp_path / "broken.ckpt", "--plasticity", "0.5", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("history", [["no entry"], [{"front": [{"keep": 1.0}]}], 3])
def test_a_damaged_history_is_told_in_one_line_where_it_is_to_be_shown(
    history, checkpoint, tmp_path, capsys
):
    broken = read_checkpoint(checkpoint)
    broken["callbacks"]["RecallCallback"]["history"] = history
    torch.save(broken, tmp_path / "broken.ckpt")
    assert "damaged" in refused(capsys, tmp_path / "broken.ckpt")


def test_what_was_tried_is_shown_of_a_run_that_kept_nothing(tmp_path, capsys):
    trainer = quiet_trainer(RecallCallback(keep_live=False))
    trainer.fit(Plain(), loader(0))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    main(["retune", str(tmp_path / "end.ckpt")])
    assert "the last line was merged" in capsys.readouterr().out


def test_a_damaged_state_is_named(checkpoint, tmp_path, capsys):
    broken = read_checkpoint(checkpoint)
    del broken["callbacks"]["RecallCallback"]["last_merge"]["made_from"]["maps"]
    torch.save(broken, tmp_path / "broken.ckpt")
    said = refused(capsys, tmp_path / "broken.ckpt", "--plasticity", "0.5", "--out", tmp_path / "o")
    assert "last_merge.made_from.maps is missing" in said
