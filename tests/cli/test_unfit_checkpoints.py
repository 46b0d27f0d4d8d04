import pytest
import torch
from torch import nn

from recall_lightning.cli.main import main
from recall_lightning.cli.unfit_checkpoints import unfit_checkpoint
from tests.cli.test_fit import RECIPES, SMALL, fit

RECIPE = str(RECIPES / "digits_permuted.yaml")
GIVEN = ["validate", "--ckpt_path=a.ckpt"]


def loading(own, other):
    try:
        own.load_state_dict(other.state_dict())
    except RuntimeError as error:
        return error


def test_a_checkpoint_of_another_model_says_what_differs():
    own, other = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    said = unfit_checkpoint(loading(own, other), GIVEN)
    assert "than this Sequential, it has besides 1.weight, 1.bias; of other shapes are " in said
    assert "it has no 1.weight, 1.bias;" in unfit_checkpoint(loading(other, own), GIVEN)


def test_errors_without_a_checkpoint_are_not_retold():
    error = loading(nn.Linear(2, 3), nn.Linear(2, 4))
    assert unfit_checkpoint(error, ["fit", "-c", "a.yaml"]) is None
    assert unfit_checkpoint(RuntimeError("something else"), GIVEN) is None


FILES = {
    "half": (lambda path: torch.save({"state_dict": {}}, path), "is no checkpoint, or not a whole"),
    "text": (lambda path: path.write_text("no checkpoint"), "is no checkpoint, or not a whole"),
    "odd text": (lambda path: path.write_text("hello"), "is no checkpoint, or not a whole"),
    "weights": (
        lambda path: torch.save({"a.weight": torch.zeros(2)}, path),
        "is no checkpoint of a Trainer, it has no pytorch-lightning_version: load mere weights",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_whole_checkpoint_is_one_sentence(kind, tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    write, said = FILES[kind]
    write(path)
    if kind == "half":
        path.write_bytes(path.read_bytes()[:300])
    assert f"--ckpt_path: the file {said}" in refused(capsys, "validate", f"--ckpt_path={path}")


def test_an_optimizer_of_other_groups_is_one_sentence(tmp_path, capsys):
    (path,) = fit(tmp_path, "digits_rotated", "--trainer.max_steps=1").rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"] *= 2
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit):
        fit(tmp_path, "digits_rotated", f"--ckpt_path={path}")
    assert "optimizer has other groups of parameters" in capsys.readouterr().err


def refused(capsys, command, option):
    with pytest.raises(SystemExit) as stopped:
        main([command, "-c", RECIPE, *SMALL, "--trainer.logger=false", option])
    assert stopped.value.code == 2
    return capsys.readouterr().err
