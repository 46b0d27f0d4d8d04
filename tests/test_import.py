import pytest

from tests.support.processes import run_python

HEAVY = ["sklearn", "transformers", "wandb", "pydoc_data.topics", "tensorboard"]


@pytest.mark.processes
def test_nothing_heavy_is_imported_before_it_is_used(tmp_path):
    code = (
        "import sys, lightning.pytorch; before = set(sys.modules); import recall_lightning;"
        f"print([m for m in {HEAVY} if m in sys.modules and m not in before])"
    )
    assert run_python("-c", code, folder=tmp_path).out.strip() == "[]"


def test_the_public_names_are_there_and_few():
    import recall_lightning

    assert all(hasattr(recall_lightning, name) for name in recall_lightning.__all__)
    assert len(recall_lightning.__all__) <= 13
