from benchmarks.evidence.protocol import COMPARED, ORDER, REPORT_SEEDS, TUNED, TUNING_SEEDS, UNTUNED
from benchmarks.evidence.stages import DEFAULT_NEW_INPUTS
from recall_lightning import RecallCallback
from recall_lightning.methods.table import METHODS


def test_the_protocol_covers_every_method_with_as_many_trials():
    assert set(ORDER) == set(METHODS) == {*TUNED, *UNTUNED}
    assert len({len(trials.values) for trials in TUNED.values()}) == 1
    assert set(COMPARED) <= set(TUNED)
    assert not set(TUNING_SEEDS) & set(REPORT_SEEDS)


def test_the_default_is_among_the_trials():
    assert DEFAULT_NEW_INPUTS in TUNED["recall"].values
    assert RecallCallback().end_rule.new_inputs == DEFAULT_NEW_INPUTS
