import pytest
import torch
from torch import nn

from recall_lightning.cli.main import main
from recall_lightning.cli.unfit_checkpoints import unfit_checkpoint
from tests.cli.test_fit import RECIPES, SMALL

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


@pytest.mark.parametrize("kind", ["half", "text"])
def test_a_file_that_is_no_whole_checkpoint_is_one_sentence(kind, tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}}, path)
    path.write_bytes(path.read_bytes()[:300] if kind == "half" else b"no checkpoint")
    recipe = str(RECIPES / "digits_permuted.yaml")
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "-c", recipe, *SMALL, "--trainer.logger=false", f"--ckpt_path={path}"])
    assert stopped.value.code == 2
    assert "--ckpt_path: the file is no checkpoint, or not a whole" in capsys.readouterr().err
