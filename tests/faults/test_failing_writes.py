from collections import Counter

from tests.faults.failing import run, trial


def test_whichever_write_fails_the_run_goes_on_or_resumes_bit_for_bit(tmp_path):
    whole, disk = run(tmp_path / "whole")
    outcomes = Counter()
    for number in range(1, disk.writes + 1):
        failed, went_on, differing = trial(tmp_path / str(number), number, whole)
        assert differing == [], f"write {number}, {failed}"
        outcomes[went_on] += 1
    assert outcomes[True] > outcomes[False] > 0  # a checkpoint's is Lightning's own, and stops
