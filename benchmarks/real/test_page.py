import json

import pytest

from benchmarks.real.page import by_seed, gained, page, reported, shares
from benchmarks.real.runs import Study
from recall_lightning.compare.results import Run


@pytest.fixture
def study(tmp_path):
    """Two methods, two seeds: losses of 4 and 5 before, of which RECALL learns half."""
    study = Study("smollm2_lora", tmp_path, 1, ("finetune", "recall"))
    (tmp_path / study.name).mkdir()
    made = {"command": "python -m benchmarks.real", "machine": "a machine"}
    (tmp_path / study.name / "made_by.json").write_text(json.dumps(made))
    for method, learned in (("finetune", 1.0), ("recall", 0.5)):
        for seed in (0, 1):
            folder = tmp_path / study.name / "report" / method / f"seed_{seed}"
            folder.mkdir(parents=True)
            folder.joinpath("run.json").write_text(json.dumps(run(method, seed, learned)))
            general = {"kl": [0.1, learned], "news": [3.0, 3.0, 3.0 + learned]}
            asked = {"question": "a|b", "before": "yes\nno", "after": method}
            general_file = folder / "general_ability.json"
            general_file.write_text(json.dumps(general | {"answers": [asked]}))
    return study


def run(method, seed, learned):
    values = dict.fromkeys(Run.__dataclass_fields__, 0)
    values |= {"label": method, "method": method, "seed": seed, "mode": "min", "swept": {}}
    values |= {"monitor": "val/loss", "tasks": ["a", "b"], "needs_old_data": False}
    values |= {"metrics": {"forgetting": learned + seed, "average": 4.0}}
    values |= {"matrix": [[4 - learned, 5.0], [4.0, 5 - learned]], "before": [4.0, 5.0]}
    values |= {"command": f"fit --{method}.strength 3", "seconds": 10.0, "hook_seconds": 1.0}
    return values | {"load_average": 1.0 + seed}


def test_the_gain_is_over_the_model_as_it_came_in_percent_of_fine_tunings(study):
    runs = reported(study)
    own, plain = (by_seed(runs, label, gained) for label in ("recall", "finetune"))
    assert plain == {0: -2.0, 1: -2.0}
    assert shares(own, plain) == {0: 50.0, 1: 50.0}


def test_the_page_has_intervals_paired_differences_and_answers(study):
    text = page({study: reported(study)})
    (row,) = [line for line in text.splitlines() if line.startswith("| finetune | 100.0")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2].startswith("1.500 ±")  # forgetting of 1 and 2
    assert cells[-2:] == ["-0.500 ± 0.000 (2)", "-0.500 ± 0.000 (2)"]
    assert "finetune forgets least: 1.500, where recall forgets 1.000" in text
    assert "| a\\|b | yes no | finetune | recall |" in text
    assert "python -m benchmarks.real\n" in text
    assert "on a machine; load average 1.0 to 2.0)" in text
    assert "`--recall.strength 3`" in text
