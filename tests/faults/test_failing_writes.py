from collections import Counter

from tests.faults.failing import run, trial


def test_wherever_a_write_fails_the_run_goes_on_or_resumes_bit_for_bit(tmp_path):
    whole, disk = run(tmp_path / "whole")
    outcomes = Counter()
    firsts = [n for n, write in enumerate(disk.writes) if write not in disk.writes[:n]]
    for number in firsts:  # python -m tests.faults tries all
        failed, went_on, differing = trial(tmp_path / str(number), number + 1, whole)
        assert differing == [], f"{disk.writes[number]}, {failed}"
        outcomes[went_on] += 1
    assert outcomes[True] > outcomes[False] > 0  # a checkpoint's is Lightning's own, and stops
