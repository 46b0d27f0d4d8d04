"""The methods that the command line knows, collected from their files."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from recall_lightning.methods import FILES
from recall_lightning.methods.method import Method
from recall_lightning.plugins import Plugins


def records(file: str) -> Iterator[Method]:
    """Yield the records that stand in a file of :mod:`recall_lightning.methods`.

    Example:
        >>> [method.name for method in records("recall_paper")]
        ['recall_paper', 'recall_paper_loop']
    """
    module = import_module(f"recall_lightning.methods.{file}")
    return (each for each in vars(module).values() if isinstance(each, Method))


_OPTIONS = {
    *("config", "method", "data", "model", "trainer", "optimizer", "lr_scheduler", "forgetting"),
    *("seed_everything", "ckpt_path", "verbose", "weights_only", "print_config", "help"),
}
"""What the command line calls otherwise: a method's arguments stand under its name there."""


def _check(name: str, found: object) -> Method:
    if not isinstance(found, Method):
        raise ValueError(f"{found!r} must be a recall_lightning.methods.method.Method")
    if found.name != name or not name.isidentifier():
        raise ValueError(f"its record has the name {found.name!r}, which must be {name!r}, a word")
    return found


METHOD_PLUGINS = Plugins("methods", [*FILES, *_OPTIONS], _check)
"""Methods of other packages: records whose name is their entry point's."""

METHODS: Mapping[str, Method] = {
    name: next(method for method in records(file) if method.name == name)
    for name, file in FILES.items()
} | METHOD_PLUGINS.working()
"""By name: those of :data:`recall_lightning.methods.FILES`, in its order, then other packages'."""
