import re
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest

from recall_lightning import __version__
from recall_lightning.cli.main import main
from recall_lightning.doctor import command, installed, self_test
from recall_lightning.merging.rules import named
from recall_lightning.recall.callback import RecallCallback

ABSOLUTE = re.compile(r"(^|[\s'\"(=])(~|[A-Z]:)?[/\\]\w")


@pytest.fixture
def healthy(monkeypatch):
    """Leave the self-test out, where it is about something else."""
    monkeypatch.setattr(self_test, "steps", lambda folder: [])


@pytest.fixture
def report(capsys):
    """Run the command; return its exit code and its rows by their names."""

    def run():
        code = 0
        try:
            main(["doctor"])
        except SystemExit as stopped:
            code = stopped.code
        shown = capsys.readouterr()
        assert shown.err == ""
        rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in shown.out.splitlines()]
        return code, {row[0]: row[-1] for row in rows}, shown.out

    return run


def without(monkeypatch, *names, instead=None):
    def found(name):
        if name not in names:
            return version(name)
        if instead is None:
            raise PackageNotFoundError(name)
        return instead

    monkeypatch.setattr(installed, "version", found)


def test_all_is_well_and_nothing_private_is_said(report, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    code, rows, text = report()
    assert code == 0
    assert text.endswith("\nall is well\n")
    assert rows["recall-lightning"] == __version__
    assert rows["torch"] == version("torch")
    assert rows["resume"] == "passed: the same weights, bit for bit"
    assert [name for name, said in rows.items() if said.startswith("passed: ")] == [
        "fit", "merge", "checkpoint", "resume",
    ]  # fmt: skip
    assert not ABSOLUTE.search(text)
    assert "hunter2" not in text
    assert "Trainer" not in text  # what Lightning says of itself


@pytest.mark.usefixtures("healthy")
def test_an_optional_package_that_is_missing_is_no_fault_and_how_to_get_it_is_said(
    report, monkeypatch
):
    without(monkeypatch, "peft")
    code, rows, _ = report()
    assert code == 0
    assert rows["lora: peft"] == "not installed (pip install 'recall-lightning[lora]')"
    assert not [name for name in rows if name.startswith("test:")]


@pytest.mark.usefixtures("healthy")
def test_a_needed_package_that_is_missing_or_too_old_is_one(report, monkeypatch):
    without(monkeypatch, "rich")
    code, rows, text = report()
    assert (code, rows["rich"]) == (1, "not installed (needed)")
    assert text.endswith("something is wrong: see above\n")
    without(monkeypatch, "torch", instead="1.13.0")
    code, rows, _ = report()
    assert code == 1
    assert re.fullmatch(r"1\.13\.0, but needs >=2\.\d+", rows["torch"])


@pytest.mark.usefixtures("healthy")
def test_an_optional_package_that_is_too_old_is_one_too(report, monkeypatch):
    without(monkeypatch, "peft", instead="0.1")
    code, rows, _ = report()
    assert code == 1
    assert rows["lora: peft"].startswith("0.1, but needs >=")


@pytest.mark.usefixtures("healthy")
def test_a_package_that_is_only_on_the_path_is_told(report, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "requires", nothing)
    code, rows, _ = report()
    assert code == 1
    assert "recall-lightning" in rows["packages"]


def test_a_step_that_fails_is_named_with_its_error_and_where_it_was_raised(report, monkeypatch):
    def fails(*_):
        raise OSError("no space left for '/home/ada/secret project/run 1/last.ckpt'")

    monkeypatch.setattr(RecallCallback, "load_state_dict", fails)
    code, rows, text = report()
    assert code == 1
    assert rows["checkpoint"].startswith("passed: ")
    assert rows["resume"].startswith("FAILED: OSError: no space left for ")
    assert "ada" not in text
    assert "in fails, test_command.py:" in text
    assert not ABSOLUTE.search(text)


def test_weights_that_resume_otherwise_are_a_failure(report, monkeypatch):
    fit = self_test._fit
    monkeypatch.setattr(self_test, "_fit", lambda folder, checkpoint=None: fit(folder))
    longer = RecallCallback.on_train_batch_start

    def nudged(self, trainer, module, *rest):
        if trainer.checkpoint_callback.dirpath.endswith("resumed") and trainer.global_step == 20:
            next(module.parameters()).data.add_(1e-6)
        return longer(self, trainer, module, *rest)

    monkeypatch.setattr(RecallCallback, "on_train_batch_start", nudged)
    code, rows, _ = report()
    assert code == 1
    assert re.match(r"FAILED: RuntimeError: resumed .* end up to \S+ apart", rows["resume"])


def test_merges_that_are_not_made_are_a_failure(report, monkeypatch):
    monkeypatch.setattr(self_test, "_MERGES", 99)
    code, rows, _ = report()
    assert code == 1
    assert rows["merge"].startswith("FAILED: RuntimeError: 4 merges of 99")


@pytest.mark.usefixtures("healthy")
def test_what_other_packages_bring_is_listed(report, monkeypatch):
    said = {"lost": "the rule 'lost' of recall-lost cannot be used (OSError: /home/ada/x)"}
    packages = {"mild": "recall-mild", "lost": "recall-lost"}
    found = SimpleNamespace(packages=packages, complaints=lambda: said)
    monkeypatch.setattr(named, "RULE_PLUGINS", found)
    monkeypatch.setattr(command, "version_of", lambda name: "1.5")
    code, rows, _ = report()
    assert code == 0
    assert rows["mild"] == "rule of recall-mild 1.5"
    assert rows["lost"] == "the rule 'lost' of recall-lost cannot be used (OSError: …/x)"


@pytest.mark.usefixtures("healthy")
def test_what_other_packages_say_when_they_are_imported_is_not_shown(report, monkeypatch):
    def complaints():
        print("welcome to recall-mild")
        print("it is in beta", file=sys.stderr)
        return {}

    found = SimpleNamespace(packages={"mild": "recall-mild"}, complaints=complaints)
    monkeypatch.setattr(named, "RULE_PLUGINS", found)
    _, rows, text = report()
    assert rows["mild"].startswith("rule of recall-mild")
    assert "welcome" not in text


def test_a_word_too_many_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--quick"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --quick" in capsys.readouterr().err
