import pytest

from tests.faults.killing import SCENARIOS, reference, trial

KILLS = 16  # python -m tests.faults makes more


@pytest.mark.processes
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_runs_end_bit_for_bit_as_one_that_was_not(scenario, tmp_path):
    whole, events = reference(tmp_path / "whole", scenario)
    for seed in range(KILLS // len(SCENARIOS)):
        kills, differing = trial(tmp_path / str(seed), scenario, seed, whole, events)
        assert differing == [], f"killed at {kills} of {events} events"
