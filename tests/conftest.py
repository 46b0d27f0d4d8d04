import os
import warnings

import pytest
import torch

from recall_lightning import deprecation

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub; it is read where that is imported
collect_ignore = ["recall_gentle"]  # a package of its own, which tests install


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        yield


@pytest.fixture(autouse=True)
def _nothing_is_told_yet(monkeypatch):
    monkeypatch.setattr(deprecation, "_told", set())
