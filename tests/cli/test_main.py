"""What the first word does, in processes of their own: as the installed script starts them."""

import pytest

from recall_lightning import __version__
from recall_lightning.cli.main import main
from tests.support.processes import run_python

SCRIPT = "import sys\nfrom recall_lightning.cli.main import main\nsys.exit(main())\n"
MY_DATA = """
from recall_lightning.data import DigitsStream

class MyStream(DigitsStream):
    def __init__(self, seed: int = 0):
        super().__init__(num_tasks=2, epochs_per_task=1, seed=seed)
"""
RECIPE = """
trainer: {accelerator: cpu, limit_train_batches: 2}
data: {class_path: mydata.MyStream}
model:
  class_path: ClassifierModule
  init_args: {num_classes: 10, model: {class_path: MLP, init_args: {sizes: [64, 8, 10]}}}
"""


@pytest.fixture
def command(tmp_path):
    """Run the installed script in a folder of the user's, with a module and a recipe in it."""
    script = tmp_path / "bin" / "recall-lightning"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    here = tmp_path / "mine"
    here.mkdir()
    (here / "mydata.py").write_text(MY_DATA)
    (here / "mine.yaml").write_text(RECIPE)

    def run(*args, fails=False):
        return run_python(script, *args, folder=here, fails=fails)

    return run


@pytest.mark.processes
@pytest.mark.parametrize(
    "words",
    [[], ["merge"], ["compare"], ["retune"], ["report"], ["export"], ["recipes"], ["doctor"]],
)
def test_help_imports_nothing_heavy(words, tmp_path):
    code = (
        "import sys\nfrom recall_lightning.cli.main import main\n"
        f"try: main({[*words, '--help']})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'lightning', 'jsonargparse') if m in sys.modules])"
    )
    *shown, heavy = run_python("-c", code, folder=tmp_path).out.splitlines()
    assert shown[0].startswith(" ".join(["usage: recall-lightning", *words]))
    assert heavy == "[]"


@pytest.mark.processes
def test_merging_imports_what_merging_needs(tmp_path):
    code = (
        "import sys, torch, recall_lightning.cli.merge, recall_lightning.merging.folders.merge\n"
        "print([m for m in {} if m in sys.modules])"
    )
    heavy = ["lightning", "torchmetrics", "transformers", "sklearn", "scipy", "peft"]
    assert run_python("-c", code.format(heavy), folder=tmp_path).out.strip() == "[]"


def test_every_command_is_named_in_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {word} " in shown for word in ("fit", "validate", "compare", "merge", "doctor"))


def test_without_a_word_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert (
        "{fit,validate,compare,merge,retune,report,export,recipes,doctor}"
        in capsys.readouterr().err
    )


def test_it_says_which_version_it_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"recall-lightning {__version__}\n"


def test_an_unknown_word_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.processes
def test_classes_in_the_current_folder_are_found_by_fit(command):
    command("fit", "-c", "mine.yaml", "--trainer.fast_dev_run=true")


@pytest.mark.processes
def test_and_by_compare_and_its_processes(command, tmp_path):
    command("compare", "-c", "mine.yaml", "--methods", "finetune", "--seeds", "1", "--out", "out")
    assert (tmp_path / "mine" / "out" / "finetune" / "seed_0" / "run.json").is_file()


@pytest.mark.processes
def test_a_module_of_the_current_folder_is_no_part_of_a_merge(command, tmp_path):
    (tmp_path / "mine" / "safetensors.py").write_text("raise AssertionError('imported')")
    done = command("merge", "a", "b", "--out", "c", fails=True)
    assert done.err.startswith("recall-lightning merge: error: a does not exist")


def test_an_interrupt_while_a_command_loads_is_no_traceback(capsys, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("recall_lightning.cli.main.import_module", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["compare"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "recall-lightning compare: interrupted\n"
