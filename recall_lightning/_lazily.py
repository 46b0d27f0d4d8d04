"""Public names of a package that are imported when they are first asked for."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``: importing it costs nothing.

    Args:
        package: Its ``__name__``.
        modules: By public name, the module below the package that has it.

    Example:
        >>> getattr_, dir_ = lazily("recall_lightning", {"TaskStream": "data.stream"})
        >>> getattr_("TaskStream").__module__
        'recall_lightning.data.stream'
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})
