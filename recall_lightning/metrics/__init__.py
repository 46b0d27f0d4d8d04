"""Continual-learning metrics of a task matrix: pure functions, and torchmetrics over them."""

from recall_lightning.metrics.functional import (
    ForgettingVariant,
    average,
    backward_transfer,
    forgetting,
    forward_transfer,
    gap_closed,
    intransigence,
    plasticity,
)
from recall_lightning.metrics.task_matrix import (
    Average,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    Intransigence,
    Plasticity,
    TaskMatrixMetric,
)

__all__ = [
    "Average",
    "BackwardTransfer",
    "Forgetting",
    "ForgettingVariant",
    "ForwardTransfer",
    "Intransigence",
    "Plasticity",
    "TaskMatrixMetric",
    "average",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "gap_closed",
    "intransigence",
    "plasticity",
]
