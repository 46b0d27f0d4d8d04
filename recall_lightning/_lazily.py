"""Public names of a package that are imported when they are first asked for."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazily(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``: importing it costs nothing.

    Args:
        package: Its ``__name__``.
        modules: By public name, the module below the package that has it. Where both are called
            alike, the package's attribute is what the module holds, whoever imports the module.

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

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, ModuleType) and modules.get(name) == name:
                value = getattr(value, name)  # importing a module would put it there
            super().__setattr__(name, value)

    sys.modules[package].__class__ = Package
    return get, lambda: sorted({*vars(sys.modules[package]), *modules})
