"""Recipes of earlier versions are read, and lead where they led."""

import json
import warnings
from pathlib import Path

import pytest
import yaml

from recall_lightning.cli.main import main
from recall_lightning.recall.migration import OLD_ARGUMENTS
from recall_lightning.recall.statistics.step_sizes import StepSizes

FOLDER = Path(__file__).parents[1] / "fixtures"
ENDS = json.loads((FOLDER / "recipes" / "ends.json").read_text())
OF_THEN = {"recall_rule_objects": ["--recall.moments.batches", "32"]}
"""Defaults of then, where no old argument tells that a recipe is of then."""


def run(recipe, folder, monkeypatch, *options):
    monkeypatch.chdir(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", "-c", str(recipe), *options])
    return [str(warning.message) for warning in caught]


def matrix_in(folder):
    (file,) = folder.rglob("task_matrix.json")
    return json.loads(file.read_text())["matrix"]


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_recipe_of_an_earlier_version_leads_where_it_led(name, tmp_path, monkeypatch):
    monkeypatch.setattr(StepSizes, "share", 1.0)  # of a merge then, whatever the steps before it
    recipe = FOLDER / "recipes" / f"{name}.yaml"
    said = run(recipe, tmp_path, monkeypatch, *OF_THEN.get(name, []))
    for now, then in zip(matrix_in(tmp_path), ENDS[name]["matrix"], strict=True):
        assert now == pytest.approx(then, rel=1e-4)
    told = [message for message in said if "of an earlier version" in message]
    old = set(yaml.safe_load(recipe.read_text()).get("recall", {})) & set(OLD_ARGUMENTS)
    assert bool(told) == bool(old)
    if name == "recall_importance":
        assert "importance_steps is importance.steps" in told[0]


def test_the_config_of_an_earlier_run_repeats_it_and_is_written_in_todays_form(
    tmp_path, monkeypatch
):
    run(FOLDER / "config_of_a_run.yaml", tmp_path, monkeypatch)
    (written,) = tmp_path.rglob("config.yaml")
    assert "importance_scale" not in written.read_text()
    again = tmp_path / "again"
    again.mkdir()
    assert not any("earlier version" in said for said in run(written, again, monkeypatch))
    assert matrix_in(again) == matrix_in(tmp_path / "runs" / "recall_importance" / "version_0")
