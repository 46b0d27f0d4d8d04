"""Merge methods as functions of tensors, one idea a file, and sums in place.

What the command merges files by: a method is a function of one weight tensor of every model, and
the :class:`~recall_lightning.merging.functional.method.MergeMethod` beside it says how it is
called. :data:`METHODS` holds them all; a new one is a file with both, and a line in :data:`FILES`.
"""

from typing import TYPE_CHECKING

from recall_lightning._lazily import lazily

if TYPE_CHECKING:
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

FILES = {
    "linear": "linear",
    "slerp": "slerp",
    "task_arithmetic": "task_vectors",
    "ties": "task_vectors",
    "dare": "task_vectors",
    "breadcrumbs": "task_vectors",
    "fisher": "fisher",
    "regmean": "regmean",
    "recall": "recall",
}
"""Each method's file by its name, in the order of lists; nothing is imported to know the names."""

__all__ = [
    "FILES",
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

__getattr__, __dir__ = lazily(
    __name__,
    {
        **FILES,
        "METHODS": "methods",
        "MergeMethod": "method",
        "lerp_": "in_place",
        "method_named": "methods",
        "weighted_sum_": "in_place",
    },
)
