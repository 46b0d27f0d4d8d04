"""The table of merge methods."""

import warnings
from importlib import import_module

from recall_lightning.checks import check_choice
from recall_lightning.merging.functional import FILES
from recall_lightning.merging.functional.method import MergeMethod

_PACKAGE = __name__.rpartition(".")[0]


def _record(name: str, file: str) -> MergeMethod:
    """Find the record of a method in its file."""
    values = vars(import_module(f"{_PACKAGE}.{file}")).values()
    return next(v for v in values if isinstance(v, MergeMethod) and v.name == name)


METHODS: dict[str, MergeMethod] = {name: _record(name, file) for name, file in FILES.items()}


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
            message = f"the merge method {name!r} is called {method.name!r} now"
            warnings.warn(message, FutureWarning, stacklevel=2)
            return method
    check_choice("method", name, *METHODS)
    return METHODS[name]
