from pathlib import Path

import pytest

from recall_lightning import callbacks
from tests.support.processes import run_python


def test_every_callback_has_a_file_and_is_exported_by_it():
    files = {path.stem for path in Path(callbacks.__file__).parent.glob("[!_]*.py")}
    assert {getattr(callbacks, name).__module__ for name in callbacks.__all__} == {
        f"recall_lightning.callbacks.{file}" for file in files
    }
    assert set(callbacks.__all__) <= set(dir(callbacks))


@pytest.mark.processes
def test_nothing_is_imported_before_it_is_asked_for(tmp_path):
    code = "import sys, recall_lightning.callbacks; print('lightning' in sys.modules)"
    assert run_python("-c", code, folder=tmp_path).out.strip() == "False"


def test_another_name_is_no_attribute():
    with pytest.raises(
        AttributeError, match=r"'recall_lightning\.callbacks' has no attribute 'Cal'"
    ):
        callbacks.Cal  # noqa: B018
