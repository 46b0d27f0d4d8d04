"""The table of merge methods."""

from recall_lightning.checks import check_choice
from recall_lightning.deprecation import warn_once
from recall_lightning.merging.functional.fisher import FISHER
from recall_lightning.merging.functional.linear import LINEAR
from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.recall import RECALL
from recall_lightning.merging.functional.regmean import REGMEAN
from recall_lightning.merging.functional.slerp import SLERP
from recall_lightning.merging.functional.task_vectors import (
    BREADCRUMBS,
    DARE,
    TASK_ARITHMETIC,
    TIES,
)

METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        LINEAR,
        SLERP,
        TASK_ARITHMETIC,
        TIES,
        DARE,
        BREADCRUMBS,
        FISHER,
        REGMEAN,
        RECALL,
    )
}
"""The merge methods by name, in the order in which the command lists them."""


def method_named(name: str) -> MergeMethod:
    """Return the merge method of that name; of a former name with a warning.

    Raises:
        ValueError: If there is none.

    Example:
        >>> method_named("ties").inputs
        ('weights', 'base')
    """
    for method in METHODS.values():
        if name == method.former_name:
            warn_once(f"the merge method {name!r}", "0.1.0", "0.3.0", repr(method.name))
            return method
    check_choice("method", name, *METHODS)
    return METHODS[name]
