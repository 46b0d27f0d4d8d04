import pickle

import pytest
import torch
from torch import nn

from recall_lightning.cli.fit import RecallCLI
from recall_lightning.cli.main import main
from recall_lightning.cli.recipe_files import defaults_beside
from recall_lightning.cli.unfit_checkpoints import unfit_checkpoint
from tests.cli.test_fit import RECIPES, SMALL, fit
from tests.support.training import Plain, loader, quiet_trainer

RECIPE = str(RECIPES / "digits_permuted.yaml")
SAVES = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
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
    "tensor": (
        lambda path: torch.save(torch.zeros(2), path),
        "is no checkpoint of a Trainer, it is no dictionary",
    ),
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


def test_a_folder_is_none(tmp_path, capsys):
    assert "it is a folder: name a file" in refused(capsys, "fit", f"--ckpt_path={tmp_path}")


def test_words_for_a_checkpoint_that_nobody_has_left_are_refused(tmp_path, capsys):
    nowhere = f"--trainer.default_root_dir={tmp_path}"
    for word in ("last", "best"):
        said = refused(capsys, "validate", f"--ckpt_path={word}", nowhere)
        assert f"--ckpt_path={word}, and " in said


def test_the_last_checkpoint_is_validated(tmp_path):
    folder = fit(tmp_path, "digits_rotated", *SAVES, "--trainer.max_steps=20")
    trained = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)["state_dict"]
    logger = f"--trainer.logger.init_args.save_dir={tmp_path}"
    args = ["validate", "-c", str(RECIPES / "digits_rotated.yaml"), logger, *SMALL]
    cli = RecallCLI(
        args=[*args, "--ckpt_path=last"],
        save_config_callback=None,
        parser_kwargs={"validate": {"default_config_files": defaults_beside(args)}},
    )
    for name, weight in cli.model.state_dict().items():
        assert torch.equal(weight, trained[name])


FAILING = {
    "a key": lambda checkpoint: checkpoint["my_vocabulary"],
    "no key": lambda checkpoint: {}[()],
    "a file": lambda checkpoint: pickle.loads(b""),
    "weights": lambda checkpoint: nn.Linear(2, 3).load_state_dict({}),
    "groups": lambda checkpoint: exec("raise ValueError('my parameter group')"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_hook_of_the_users_own_that_fails_is_not_the_files_fault(kind, tmp_path):
    class Own(Plain):
        def on_load_checkpoint(self, checkpoint):
            FAILING[kind](checkpoint)

    trainer = quiet_trainer()
    trainer.fit(Plain(), loader(0))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(Exception) as raised:  # noqa: PT011 (of any kind)
        quiet_trainer(max_epochs=2).fit(Own(), loader(0), ckpt_path=tmp_path / "a.ckpt")
    assert unfit_checkpoint(raised.value, GIVEN) is None


def test_a_checkpoint_of_weights_alone_is_said_to_be_that(tmp_path):
    trainer = quiet_trainer()
    trainer.fit(Plain(), loader(0))
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(KeyError) as raised:
        quiet_trainer(max_epochs=2).fit(Plain(), loader(0), ckpt_path=tmp_path / "a.ckpt")
    assert "holds weights and no state of optimizers" in unfit_checkpoint(raised.value, GIVEN)


def test_an_optimizer_of_other_groups_is_one_sentence(tmp_path, capsys):
    (path,) = fit(tmp_path, "digits_rotated", "--trainer.max_steps=1").rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"] *= 2
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit):
        fit(tmp_path, "digits_rotated", f"--ckpt_path={path}")
    assert "optimizer has other groups of parameters" in capsys.readouterr().err


def refused(capsys, command, *options):
    with pytest.raises(SystemExit) as stopped:
        main([command, "-c", RECIPE, *SMALL, "--trainer.logger=false", *options])
    assert stopped.value.code == 2
    return capsys.readouterr().err
