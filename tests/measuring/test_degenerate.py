import math

import torch

from recall_lightning.measuring.degenerate import why_degenerate
from recall_lightning.measuring.generation import Written


def written(ids, entropy=2.0):
    own = torch.ones_like(ids, dtype=torch.bool)
    return Written(ids, own.long(), own, torch.full(ids.shape, entropy))


def varied(vocabulary=1000):
    return torch.randint(vocabulary, (8, 64), generator=torch.Generator().manual_seed(0))


def test_varied_text_of_some_entropy_is_silent():
    assert why_degenerate(written(varied()), 1000) is None


def test_repetitions_are_told_by_their_share():
    ids = varied()
    ids[:4] = torch.arange(8).repeat(8)
    assert why_degenerate(written(ids), 1000).startswith("43% of its sequences of 6 tokens repeat")


def test_what_an_untrained_model_writes_is_told():
    assert "all but random" in why_degenerate(written(varied(), math.log(1000) - 0.1), 1000)


def test_a_model_that_does_not_run_as_it_writes_is_told_and_chance_is_not():
    ids = written(varied())
    chance = 2 + 3 * torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    assert why_degenerate(ids, 1000, chance) is None
    assert "does not run as it writes" in why_degenerate(ids, 1000, chance + 2)
    assert "does not run as it writes" in why_degenerate(ids, 1000, chance * math.nan)


def test_only_what_the_model_chose_itself_counts():
    ids = varied()
    nothing = Written(ids, torch.ones_like(ids), torch.zeros(8, 64, dtype=torch.bool), ids.float())
    assert why_degenerate(nothing, 1000) == "it has written nothing"
