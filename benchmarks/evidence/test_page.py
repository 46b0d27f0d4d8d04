import pytest

from benchmarks.evidence.page import gaps_to_joint
from recall_lightning.compare.results import Run


def test_the_gap_to_joint_training_is_of_the_tasks_seen_so_far():
    def run(label, matrix):
        names = Run.__dataclass_fields__
        values = dict.fromkeys(names, 0) | {"label": label, "seed": 3, "mode": "max"}
        return Run(**values | {"matrix": matrix})

    joint = run("joint", [[0.1, 0.1], [0.9, 0.7]])
    method = run("ewc", [[1.0, 0.0], [0.5, 0.7]])
    (gaps,) = gaps_to_joint([joint, method], "ewc")
    assert gaps == pytest.approx([-0.1, 0.2])
