"""The methods that the command line knows, collected from their files."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from recall_lightning.methods import FILES
from recall_lightning.methods.method import Method


def records(file: str) -> Iterator[Method]:
    """Yield the records that stand in a file of :mod:`recall_lightning.methods`.

    Example:
        >>> [method.name for method in records("recall_paper")]
        ['recall_paper', 'recall_paper_loop']
    """
    module = import_module(f"recall_lightning.methods.{file}")
    return (each for each in vars(module).values() if isinstance(each, Method))


METHODS: Mapping[str, Method] = {
    name: next(method for method in records(file) if method.name == name)
    for name, file in FILES.items()
}
"""By name, in the order of :data:`recall_lightning.methods.FILES`."""
