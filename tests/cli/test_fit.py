import functools
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.cli.fit import RecallCLI
from recall_lightning.cli.main import main
from recall_lightning.data import DigitsStream
from recall_lightning.methods.table import METHODS
from tests.support.processes import run_python
from tests.support.wandb_records import (
    config_of,
    files_of,
    history_of,
    metrics_of,
    summary_of,
)

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


def run(*args):
    main([str(arg) for arg in args])


def fit(tmp_path, recipe="digits_rotated", *args):
    logger = f"--trainer.logger.init_args.save_dir={tmp_path}"
    data = ["--data.init_args.num_tasks=2", "--data.init_args.epochs_per_task=1"]
    data += ["--trainer.check_val_every_n_epoch=1"]
    run("fit", "-c", RECIPES / f"{recipe}.yaml", logger, *data, *SMALL, *args)
    return tmp_path / recipe / "version_0"


@pytest.fixture(autouse=True)
def _only_these_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recall-lightning"])


def printed_config(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        run("fit", *args, "--print_config")
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "recipe", sorted({path.stem for path in RECIPES.glob("*.yaml")} - {"defaults"})
)
def test_every_recipe_is_an_overlay_on_the_defaults(recipe, capsys):
    config = printed_config(capsys, "-c", RECIPES / f"{recipe}.yaml")
    assert config["trainer"]["logger"]["init_args"]["name"] == recipe
    assert config["trainer"]["num_sanity_val_steps"] == 0
    starts_trained = isinstance(config["model"]["init_args"].get("model"), str)
    assert config["recall"]["merge_first_task"] is starts_trained


@pytest.mark.parametrize(("limit", "code"), [(0.0, 3), (1.0, None)])
def test_a_fit_that_forgot_more_than_its_limits_ends_with_exit_code_3(
    limit, code, tmp_path, capsys
):
    ended, limits = None, ["--forgetting.limits", f"{{permuted_0: {limit}}}"]
    try:
        fit(tmp_path, "digits_permuted", "--method=finetune", *limits)
    except SystemExit as stopped:
        ended = stopped.code
    assert ended == code
    folder, said = tmp_path / "digits_permuted" / "version_0", capsys.readouterr().out
    assert (folder / "task_matrix.json").exists()
    assert f"report: {folder / 'report.html'}" in said
    assert ("exit code 3: “permuted_0” lost " in said) == (code == 3)


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "own" / "report.html").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"report\.html could not be written"):
        fit(tmp_path, "digits_permuted", f"--forgetting.folder={tmp_path / 'own'}")
    assert (tmp_path / "own" / "task_matrix.json").exists()


@pytest.mark.processes
def test_weights_and_biases_holds_what_the_run_was_of_and_its_files(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of a logger that this process had
    arguments = (
        *("fit", "-c", RECIPES / "digits_permuted.yaml", *SMALL, "--data.num_tasks=2"),
        *("--data.epochs_per_task=1", "--trainer.check_val_every_n_epoch=1"),
        *("--trainer.logger=WandbLogger", "--trainer.logger.offline=true"),
        *("--trainer.limit_train_batches=4", "--recall.every=0.5"),
    )
    run_python("-m", "recall_lightning", *arguments, folder=tmp_path)
    config = config_of(tmp_path)
    assert config["method"] == "recall"
    assert config["recall"]["every"] == 0.5
    assert config["tasks"] == ["permuted_0", "permuted_1"]
    assert [Path(file).name for file in config["recipe"]] == ["digits_permuted.yaml"]
    assert not {"ewc", "_instantiator", "lr"} & config.keys()
    kept = {name for name in files_of(tmp_path) if name.startswith("recall_lightning/")}
    assert kept == {
        f"recall_lightning/{name}"
        for name in (
            *("config.yaml", "task_matrix.json", "task_matrix.png", "curves.png"),
            *("merges.json", "environment.json", "report.html"),
        )
    }
    averages = [point for point in history_of(tmp_path) if "continual/average" in point]
    assert [point["continual/task"] for point in averages] == [1, 2]
    merges = [point for point in history_of(tmp_path) if "recall/merge_seconds" in point]
    assert [point["recall/step"] for point in merges] == [6, 8]
    metrics = metrics_of(tmp_path)
    assert metrics["continual/average"] == ("continual/task", set())
    assert metrics["continual/permuted_0"] == ("continual/task", {"last", "max"})
    assert metrics["recall/merge_seconds"] == ("recall/step", set())
    summary = summary_of(tmp_path)
    record = json.loads(next(tmp_path.rglob("lightning_logs/*/task_matrix.json")).read_text())
    assert set(record["metrics"]) == {
        *("average", "forgetting", "backward_transfer", "forward_transfer", "plasticity"),
    }
    for name, value in record["metrics"].items():
        assert summary[f"continual/{name}"] == pytest.approx(value)
    scores = [row[0] for row in record["matrix"]]
    best = {"last": scores[-1], "max": max(scores)}
    assert summary["continual/permuted_0"] == pytest.approx(best)
    chart = summary["continual/scores_by_task_table"]
    assert (chart["nrows"], chart["ncols"]) == (6, 3)  # two tasks, and before them: by name
    assert summary["continual/report"]["_type"] == "html-file"
    (logged,) = tmp_path.rglob("media/html/continual/report*.html")
    (written,) = tmp_path.rglob("lightning_logs/*/report.html")
    assert logged.read_text() == written.read_text()


def test_options_override_the_recipe(capsys):
    config = printed_config(
        capsys, "-c", RECIPES / "digits_rotated.yaml", "--recall.every", "0.1",
        "--recall.rule", "cka", "--trainer.logger", "WandbLogger",
    )  # fmt: skip
    assert config["recall"]["every"] == 0.1
    assert config["recall"]["rule"] == "cka"
    assert config["trainer"]["logger"]["class_path"].endswith("WandbLogger")


def test_a_number_of_steps_stays_an_integer_and_a_fraction_a_float(capsys):
    recipe = RECIPES / "digits_rotated.yaml"
    steps = printed_config(capsys, "-c", recipe, "--recall.every", "5")["recall"]["every"]
    whole = printed_config(capsys, "-c", recipe, "--recall.every", "1.0")["recall"]["every"]
    assert type(steps) is int
    assert type(whole) is float


def test_a_run_leaves_its_files_and_resumes_and_validates(tmp_path):
    folder = fit(tmp_path)
    for name in ("config.yaml", "metrics.csv", "task_matrix.json", "task_matrix.png", "curves.png"):
        assert (folder / name).exists(), name
    page = (folder / "report.html").read_text()
    assert "merges (" in page
    assert "beside its settings" in page
    checkpoint = next((folder / "checkpoints").glob("*.ckpt"))
    before = json.loads((folder / "task_matrix.json").read_text())["before"]
    assert len(before) == 2
    recipe = RECIPES / "digits_rotated.yaml"
    data = ["--data.init_args.num_tasks=2", "--data.init_args.epochs_per_task=1"]
    data += [f"--ckpt_path={checkpoint}"]
    run("validate", "-c", recipe, *data, *SMALL, "--trainer.logger=false")


def test_the_saved_configuration_can_be_read_back(tmp_path, capsys):
    saved = fit(tmp_path, "digits_rotated", "--trainer.max_epochs=2") / "config.yaml"
    capsys.readouterr()
    config = printed_config(capsys, "-c", saved)
    assert config["model"] == yaml.safe_load(saved.read_text())["model"]
    assert config["model"]["init_args"]["model"]["model_type"] == "vit"


def test_last_is_the_newest_runs_checkpoint_or_a_new_run(tmp_path):
    saves = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    first = fit(tmp_path, "digits_rotated", *saves, "--ckpt_path=last")
    matrix = json.loads((first / "task_matrix.json").read_text())
    assert matrix["before"] is not None
    assert (first / "checkpoints" / "last.ckpt").is_file()
    fit(tmp_path, "digits_rotated", *saves, "--ckpt_path=last")
    resumed = json.loads((tmp_path / "digits_rotated/version_1/task_matrix.json").read_text())
    assert resumed["measurements"] == matrix["measurements"]  # nothing was left to train


def test_fine_tuning_merges_nothing(tmp_path):
    header = fit(tmp_path, "digits_split", "--data.init_args.num_tasks=2", "--method=finetune")
    columns = (header / "metrics.csv").read_text().split("\n")[0]
    assert "continual/forgetting" in columns
    assert "recall/" not in columns


@pytest.mark.parametrize("name", ["slao", "self_replay"])
def test_a_method_for_other_models_says_so_and_names_what_is_for_this_one(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "digits_split", f"--method={name}")
    assert stopped.value.code == 2
    assert re.search(r"ClassifierModule (trains|holds) none: use ", capsys.readouterr().err)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_its_own_callback_alone(name, tmp_path, monkeypatch):
    fits = []
    real = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda own, *a, **k: (fits.append(own), real(own, *a, **k)))
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    few += ["--trainer.enable_checkpointing=false"]
    few += [f"--method={name}", "--trainer.logger=false"]
    if name in ("slao", "self_replay"):  # which are for adapters and for language models
        text = ["--data.init_args.tasks=[source,names]", "--data.init_args.epochs_per_task=1"]
        text += ["--model.init_args.lora={r: 2}", "--trainer.val_check_interval=null"]
        run("fit", "-c", RECIPES / "stdlib_text.yaml", *text, *SMALL, *few)
    else:
        fit(tmp_path, "digits_split", *few)
    (trainer,) = fits
    of_methods = {method.callback for method in METHODS.values()} - {None}
    own = METHODS[name].callback
    found = [type(callback) for callback in trainer.callbacks if type(callback) in of_methods]
    assert found == ([] if own is None else [own])
    assert trainer.global_step == 4
    assert trainer.datamodule.joint == (name == "joint")
    assert (trainer.datamodule.replay is not None) == (name == "replay")


@pytest.fixture
def parsed(monkeypatch):
    """Parse a command line, and build and run nothing."""
    monkeypatch.setattr(RecallCLI, "instantiate_classes", lambda *_: None)
    monkeypatch.setattr(RecallCLI, "_run_subcommand", lambda *_: None)
    built = []
    add = RecallCLI.parse_arguments
    monkeypatch.setattr(
        RecallCLI, "parse_arguments", lambda cli, *a: (built.append(cli), add(cli, *a))
    )

    def parse(*args):
        run("fit", "-c", RECIPES / "digits_split.yaml", *args)
        return built[-1].config["fit"]

    return parse


@pytest.mark.parametrize("value", [True, False])
def test_whether_the_first_task_is_protected_is_told_once_for_all_methods(value, parsed):
    config = parsed(f"--recall.merge_first_task={str(value).lower()}")
    for method in METHODS.values():
        if method.keeps_first:
            assert config[method.name][method.keeps_first] is value


def test_a_methods_own_defaults_are_those_of_the_command_line(parsed):
    assert parsed()["recall_paper"]["every"] == 1.0
    assert parsed()["recall_paper_loop"]["every"] == 0.25
    given = ("--method=recall_paper_loop", "--recall_paper_loop.every=0.5")
    assert parsed(*given)["recall_paper_loop"]["every"] == 0.5


def test_an_option_of_an_earlier_version_is_taken_under_its_new_name_with_a_warning(parsed):
    with pytest.warns(UserWarning, match=r"typical_samples is samples\.typical"):
        config = parsed("--recall.rule=rbf", "--recall.typical_samples=8")
    assert config["recall"]["samples"]["typical"] == 8
    assert "typical_samples" not in config["recall"]


def test_a_wrong_value_of_an_old_option_is_refused_under_its_new_name(parsed, capsys):
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match="earlier version"):
        parsed("--recall.rule=rbf", "--recall.typical_samples=few")
    assert "recall.samples" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--recall.kep=3", "--recall.plasticity=x", "--method=ewx"])
def test_a_wrong_option_is_told_in_a_few_lines(wrong, parsed, capsys):
    with pytest.raises(SystemExit):
        parsed(wrong)
    first, tip = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("recall-lightning: error: ")
    assert tip == "tip: recall-lightning fit --help lists all options"


def test_old_options_are_not_in_the_help(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    assert "recall.typical_samples" not in capsys.readouterr().out


def test_of_the_methods_the_chosen_one_alone_is_built(tmp_path, monkeypatch):
    for method in METHODS.values():
        if method.name != "ewc" and method.configured:
            monkeypatch.setattr(method.configured, "__init__", _fails_like(method.configured))
    others = tmp_path / "others.yaml"  # a recipe may hold settings of several
    others.write_text("recall: {every: 0.3}\nreplay: {capacity: 3}\n")
    few = ["--trainer.fast_dev_run=true", "-c", others]
    fit(tmp_path, "digits_split", "--method=ewc", *few, "--trainer.logger=false")


def _fails_like(kind):
    """Return an ``__init__`` that fails, with the arguments of the real one."""

    @functools.wraps(kind.__init__)
    def fail(self, *args, **kwargs):
        raise AssertionError(f"{kind} was built")

    return fail


def test_too_few_epochs_are_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "digits_rotated", "--trainer.max_epochs=1")
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("recall-lightning: error: max_epochs=1 does not cover the stream")


def test_training_data_that_is_missing_is_told_before_anything_is_validated(
    tmp_path, capsys, monkeypatch
):
    def missing(self):
        raise MisconfigurationException("there is no file x")

    monkeypatch.setattr(DigitsStream, "check_training_data", missing)
    monkeypatch.setattr(Trainer, "validate", lambda *_, **__: pytest.fail("it is validated"))
    with pytest.raises(SystemExit):
        fit(tmp_path)
    assert "there is no file x" in capsys.readouterr().err


@pytest.mark.processes
def test_the_command_is_installed_and_helps(tmp_path):
    shown = run_python("-m", "recall_lightning.cli.main", "fit", "--help", folder=tmp_path).out
    for option in ("--method", "--recall.every", "--forgetting.monitor", "--trainer.max_epochs"):
        assert option in shown


def test_without_a_logger_no_file_of_the_users_is_overwritten(tmp_path, monkeypatch):
    recipe = tmp_path / "config.yaml"
    recipe.write_text((RECIPES / "digits_rotated.yaml").read_text())
    (tmp_path / "defaults.yaml").write_text((RECIPES / "defaults.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    run("fit", "-c", "config.yaml", "--trainer.logger=false", "--trainer.fast_dev_run=true", *SMALL)
    assert recipe.read_text() == (RECIPES / "digits_rotated.yaml").read_text()


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, "digits_rotated", "--ckpt_path=none.ckpt")
    assert "recall-lightning: error:" in capsys.readouterr().err.strip().split("\n")[-1]


def test_without_a_subcommand_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "fit,validate" in capsys.readouterr().err


def test_merging_is_a_command_of_its_own(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["merge", "a", "b", "0.5", "--wieghts", "1", "--out", str(tmp_path / "out")])
    assert "joined by commas" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["model.init_args.model", "data.init_args.tokenizer"])
def test_a_model_or_tokenizer_that_is_not_there_is_one_line(argument, capsys, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    with pytest.raises(SystemExit) as stopped:
        run("fit", "-c", RECIPES / "five_tasks_tiny.yaml", f"--{argument}=no/such/folder", *SMALL)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("recall-lightning: error: ")
    assert "no/such/folder" in last
    assert "a hub id" in last


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("detector=ddm", "boundaries: detector='ddm' is unknown: use 'page_hinkley', 'adwin'"),
        ("minimal_steps=0", "boundaries.minimal_steps=0 must be an integer of 1 or more"),
    ],
)
def test_settings_that_one_of_several_types_refuses_are_told_in_its_words(option, said, capsys):
    drift = "--recall.boundaries=DriftSettings", f"--recall.boundaries.{option}"
    with pytest.raises(SystemExit) as stopped:
        run("fit", "-c", RECIPES / "digits_permuted.yaml", *drift, *SMALL)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"recall-lightning: error: recall: {said}")


@pytest.mark.parametrize("boundaries", ["drift", "DriftSettings"])
def test_without_river_the_command_says_what_to_install(boundaries, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "river", None)
    recipe = RECIPES / "digits_permuted.yaml"
    with pytest.raises(SystemExit):
        run("fit", "-c", recipe, f"--recall.boundaries={boundaries}", *SMALL)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("pip install 'recall-lightning[drift]'")


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        (["recall_lightning.RecallCallback"], "RecallCallback"),
        (
            ["recall_lightning.ForgettingMonitor", "--trainer.callbacks.monitor=val/acc"],
            "ForgettingMonitor",
        ),
    ],
)
def test_a_callback_that_the_command_builds_itself_is_refused_a_second_time(extra, kind, capsys):
    recipe = RECIPES / "digits_permuted.yaml"
    with pytest.raises(SystemExit) as stopped:
        run("fit", "-c", recipe, f"--trainer.callbacks+={extra[0]}", *extra[1:], *SMALL)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"trainer.callbacks has {kind}, and a Trainer takes one" in last


def test_arguments_of_a_method_that_is_not_used_are_refused(capsys):
    recipe = str(RECIPES / "digits_rotated.yaml")
    with pytest.raises(SystemExit):
        run("fit", "-c", recipe, "--ewc.strength", "10")
    said = capsys.readouterr().err
    assert "--ewc.strength has no effect with --method recall: leave it out, or give" in said
    first = ["--recall.merge_first_task", "false"]  # counts for all methods
    config = printed_config(capsys, "-c", recipe, "--method=ewc", "--ewc.strength=10", *first)
    assert config["ewc"]["strength"] == 10
