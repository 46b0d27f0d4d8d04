"""What importing loads: modules are counted, not seconds."""

import pytest

from tests.support.processes import run_python

HEAVY = ["sklearn", "wandb", "peft", "datasets", "pyarrow", "tensorboard", "pydoc_data.topics"]


def loaded_by(code, folder, before="pass"):
    """Return the packages beyond the standard library that some code loads, and heavy modules."""
    script = (
        f"import sys\n{before}\nbefore = set(sys.modules)\n{code}\n"
        "new = set(sys.modules) - before\n"
        "print(*{each.partition('.')[0] for each in new} - sys.stdlib_module_names)\n"
        f"print(*(new & set({HEAVY})))"
    )
    packages, heavy = run_python("-c", script, folder=folder).out.splitlines()
    return set(packages.split()), heavy.split()


@pytest.mark.processes
def test_the_package_its_version_and_its_plugins_names_load_nothing_else(tmp_path):
    code = (
        "import recall_lightning\nrecall_lightning.__version__\n"
        "from recall_lightning import plugins\nplugins.plugin_packages('rules')"
    )
    assert loaded_by(code, tmp_path) == ({"recall_lightning"}, [])


@pytest.mark.processes
def test_its_callbacks_and_streams_load_little_beyond_lightning(tmp_path):
    code = "from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream"
    loaded, heavy = loaded_by(code, tmp_path, before="import lightning.pytorch")
    assert loaded == {"recall_lightning", "safetensors"}
    assert heavy == []


def test_the_public_names_are_there_and_few():
    import recall_lightning

    assert all(hasattr(recall_lightning, name) for name in recall_lightning.__all__)
    assert len(recall_lightning.__all__) <= 14
