"""What a model knew before its first task, of which there is no data: what it writes itself."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.batches import batch_size
from recall_lightning.measuring.generation import generated_batches
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.statistics.recent_batches import RecentBatches


class Prior:
    """Lets a causal language model write what stands for data that there is none of.

    Args:
        recent: The last batches; as many are written.
        seed: Of what is written.
    """

    def __init__(self, recent: RecentBatches, seed: int) -> None:
        self._recent = recent
        self._seed = seed

    def written(self, context: TaskContext, size: int, length: int) -> tuple[list[Any], ModelView]:
        """Return batches that the model has written, and the view of it to run on them."""
        module = context.pl_module
        seed = self._seed + context.trainer.global_rank
        batches = generated_batches(module, self._recent.number, size, length, seed)
        rank_zero_info(f"{len(batches) * size} sequences of {length} tokens were generated")
        generator = find_generator(module)

        def forward(_: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Any:
            assert generator is not None
            return generator(**batch)

        return list(batches), view_of(module).with_forward(forward)


def shape_of(batch: Any) -> tuple[int, int]:
    """Return the number of sequences in a batch, and their tokens."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return batch_size(batch), 64 if ids is None else max(2, int(ids.shape[1]))
