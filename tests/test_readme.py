import re
from pathlib import Path

import pytest
import torch

from tests.support.training import Plain, loader

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[code[:40] for code in EXAMPLES])
def test_the_readmes_examples_run_as_they_are(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(README.parent / "recipes" / "five_tasks_tiny" / "model")
    torch.manual_seed(0)
    own = {
        "model": Plain(),
        "train_loaders": [loader(task) for task in range(2)],
        "val_loaders": [loader(task, 16, shuffle=False) for task in range(2)],
    }
    exec(compile(example, "README.md", "exec"), own)


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
