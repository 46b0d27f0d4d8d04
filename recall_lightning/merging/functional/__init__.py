"""Merge methods as functions of tensors, one idea a file, and sums in place.

What the command merges files by: a method is a function of one weight tensor of every model, and
the :class:`~recall_lightning.merging.functional.method.MergeMethod` beside it says how it is
called. :data:`METHODS` names them all.
"""

from recall_lightning.merging.functional.fisher import fisher
from recall_lightning.merging.functional.in_place import lerp_, weighted_sum_
from recall_lightning.merging.functional.linear import linear
from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.methods import METHODS, method_named
from recall_lightning.merging.functional.recall import recall
from recall_lightning.merging.functional.regmean import regmean
from recall_lightning.merging.functional.slerp import slerp
from recall_lightning.merging.functional.task_vectors import (
    breadcrumbs,
    dare,
    task_arithmetic,
    ties,
)

__all__ = [
    "METHODS",
    "MergeMethod",
    "breadcrumbs",
    "dare",
    "fisher",
    "lerp_",
    "linear",
    "method_named",
    "recall",
    "regmean",
    "slerp",
    "task_arithmetic",
    "ties",
    "weighted_sum_",
]
