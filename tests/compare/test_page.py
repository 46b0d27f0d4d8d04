"""The report of a comparison: which runs it shows, and what it says of the others."""

from dataclasses import dataclass

import pytest

from recall_lightning.compare.page import shown_seeds


@dataclass(frozen=True)
class Finished:
    label: str
    seed: int


@pytest.mark.parametrize(
    ("seeds", "shown"),
    [
        ({"a": [0, 1], "b": [0, 1]}, {"a": 0, "b": 0}),
        ({"a": [0, 1], "b": [1], "c": [1, 2]}, {"a": 1, "b": 1, "c": 1}),
        ({"a": [2, 3], "b": [4]}, {"a": 2, "b": 4}),
    ],
)
def test_rows_are_shown_with_the_seed_that_most_of_them_have(seeds, shown):
    runs = [Finished(label, seed) for label, own in seeds.items() for seed in own]
    assert shown_seeds(runs) == shown
