"""Merge methods as functions of one tensor a model, and how they are summed in place."""

from typing import TYPE_CHECKING

from recall_lightning._lazily import lazily

if TYPE_CHECKING:
    from recall_lightning.merging.functional.methods import linear, recall, slerp
    from recall_lightning.merging.functional.second_moments import importance, subspace
    from recall_lightning.merging.functional.task_vectors import (
        breadcrumbs,
        dare,
        task_arithmetic,
        ties,
    )

FILES = {
    "linear": "methods",
    "slerp": "methods",
    "task_arithmetic": "task_vectors",
    "ties": "task_vectors",
    "dare": "task_vectors",
    "breadcrumbs": "task_vectors",
    "importance": "second_moments",
    "subspace": "second_moments",
    "recall": "methods",
}
"""Each method's file by its name, in the order of lists; nothing is imported to know the names."""

__all__ = [
    "FILES",
    "breadcrumbs",
    "dare",
    "importance",
    "linear",
    "recall",
    "slerp",
    "subspace",
    "task_arithmetic",
    "ties",
]

__getattr__, __dir__ = lazily(__name__, FILES)
