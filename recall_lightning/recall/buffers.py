"""Running statistics of normalisation layers, measured anew under merged weights."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.weights.finite import all_finite


def recalibrate(context: TaskContext, run: ModelRun, batches: Sequence[Any]) -> None:
    """Set running statistics to their averages over batches under the weights as they are.

    Normalisation layers alone are in training mode meanwhile, as statistics serve evaluation, where
    nothing is dropped. Layers that are not in training mode are left alone: training does not touch
    their statistics either. With several processes the averages are over the batches of all. What
    is not finite is not taken. See Izmailov et al. 2018 (arXiv 1803.05407, section 3.2), who do the
    same for averaged weights.

    Args:
        context: The task.
        run: How it is run on a batch.
        batches: Training batches; where there is none, nothing happens.

    Raises:
        ValueError: If the module cannot be run on them; statistics are then as before.
    """
    trainer, pl_module = context.trainer, context.pl_module
    layers = [
        child
        for child in pl_module.modules()
        if isinstance(child, _NormBase) and child.training and child.running_mean is not None
    ]
    if not layers or not batches:
        return
    with undisturbed(pl_module), run.ready(context) as view:
        for layer in layers:
            layer.train()

        def measure(some: Sequence[Any]) -> None:
            for layer in layers:
                layer.reset_running_stats()
            for number, batch in enumerate(some, 1):
                for layer in layers:
                    layer.momentum = 1 / number  # the average of all batches so far
                view.forward(pl_module, batch)

        run.evenly(trainer, batches, measure)
        measured = [_averaged(trainer, layer) for layer in layers]
    if not all(all_finite(tensor) for pair in measured for tensor in pair):
        rank_zero_warn("running statistics were kept, as those measured anew are not finite")
        return
    for layer, (mean, variance) in zip(layers, measured, strict=True):
        layer.running_mean.copy_(mean)  # type: ignore[union-attr]
        layer.running_var.copy_(variance)  # type: ignore[union-attr]


def _averaged(trainer: Trainer, layer: _NormBase) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    both = torch.stack([layer.running_mean, layer.running_var]).double()
    if trainer.world_size > 1:
        both = trainer.strategy.reduce(both, reduce_op="mean")
    return both[0], both[1]
