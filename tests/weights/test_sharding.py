import json

import pytest

from tests.support.processes import run_python

OF_TWO = """
import json, torch
from recall_lightning.weights.sharding import of_all_processes, of_this_process

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
found = of_all_processes({"batch": torch.tensor([rank]), "step": [rank]})
told = [[each["batch"].item() for each in found], of_this_process(found)["step"]]
json.dump(told, open(f"rank_{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.processes
def test_the_first_process_gets_what_all_have_and_each_finds_its_own(tmp_path):
    (tmp_path / "gather.py").write_text(OF_TWO)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run_python(*launcher, "gather.py", folder=tmp_path)
    told = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [[[0, 1], [0]], [[1, 1], [1]]]
