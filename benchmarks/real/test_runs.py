import pytest

from benchmarks.real.protocol import RECIPES, TRIALS, methods, seeds_of, studies, title_of
from benchmarks.real.runs import Study, _matched, chosen_methods
from benchmarks.support.pages import ROOT


def test_every_recipe_is_a_study_with_a_title():
    assert {"smollm2_lora", "smollm2_full", "smollm2_instructions"} <= set(studies())
    assert "defaults" not in studies()
    assert all(title_of(study) for study in studies())
    assert (ROOT / RECIPES).is_dir()


def test_no_study_is_reported_on_the_seed_that_settings_are_chosen_on():
    assert all(100 not in seeds_of(study) for study in studies())


def test_fine_tuning_and_recall_are_always_run_and_recall_is_never_tuned():
    assert chosen_methods("lwf", False, methods()) == ("finetune", "lwf", "recall")
    assert "recall" not in TRIALS
    with pytest.raises(ValueError, match="unknown methods"):
        chosen_methods("nothing", False, methods())


def test_a_rival_runs_with_the_setting_that_learns_as_much_as_recall():
    learned = {"recall": 0.8, "l2 0.01": 0.9, "l2 1": 0.7}
    assert _matched("l2", learned) == "l2:--l2.strength 0.1"
    assert _matched("l2", {"recall": 0.8}) == "l2:"


def test_methods_without_trials_run_as_they_are(tmp_path):
    study = Study("smollm2_lora", tmp_path, 1, ("finetune", "replay", "recall"))
    settings = {"finetune": "finetune:", "replay": "replay:--replay.per_task 100"}
    assert study.tune() == settings | {"recall": "recall:"}
