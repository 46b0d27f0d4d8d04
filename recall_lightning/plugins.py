"""Rules, methods and streams that other packages bring, found by their entry points.

A package names what it brings in its ``pyproject.toml``::

    [project.entry-points."recall_lightning.rules"]
    gentle = "recall_gentle:Gentle"

From then on ``gentle`` stands wherever a built-in name does. Names are read without importing
anything; what stands behind one is imported when it is asked for, and whatever is wrong with it is
one sentence that names its package. Nothing here imports anything heavy.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, Literal, TypeVar

Group = Literal["rules", "methods", "streams"]

_Kind = TypeVar("_Kind")


class PluginError(ValueError):
    """What another package brings cannot be used; the message is one sentence that says why."""


@cache
def _found(group: Group) -> Mapping[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=f"recall_lightning.{group}"), key=_package_of):
        found.setdefault(entry.name, []).append(entry)
    return found


def _package_of(entry: EntryPoint) -> str:
    return "a package" if entry.dist is None else entry.dist.name


def plugin_packages(group: Group) -> dict[str, str]:
    """Return the package of each name that others bring, without importing any.

    A name that is also built in, or stands in two packages, is there too: see :class:`Plugins`.

    Example:
        >>> "rbf" in plugin_packages("rules")  # which is built in
        False
    """
    return {
        name: " and ".join(map(_package_of, entries)) for name, entries in _found(group).items()
    }


def plugin_module(name: str) -> str | None:
    """Return the module that a name of any group is imported from; None where none is called so.

    Example:
        >>> plugin_module("rbf") is None
        True
    """
    groups: tuple[Group, ...] = ("rules", "methods", "streams")
    entries = [entry for group in groups for entry in _found(group).get(name, [])]
    return entries[0].module if entries else None


class Plugins(Generic[_Kind]):
    """What other packages bring of one kind.

    Args:
        group: Which entry points they have, ``recall_lightning.GROUP``.
        built_in: The names that are taken.
        check: Is given a name and what was imported for it, and returns that, or raises a
            ValueError that says what it should have been.

    Example:
        >>> Plugins("rules", ["rbf"], lambda name, found: found).working()
        {}
    """

    def __init__(
        self, group: Group, built_in: Collection[str], check: Callable[[str, object], _Kind]
    ) -> None:
        self._group, self._built_in, self._check = group, frozenset(built_in), check
        self._loaded: dict[str, _Kind | PluginError] = {}

    @property
    def packages(self) -> dict[str, str]:
        """The package of each name."""
        return plugin_packages(self._group)

    def get(self, name: str) -> _Kind | None:
        """Return what a name stands for, imported at its first use; None where no package has it.

        Of a built-in name that another package has too, it is None, and a warning says so.

        Raises:
            PluginError: If it cannot be used.
        """
        if name not in self.packages:
            return None
        if name in self._built_in:
            warnings.warn(self._taken(name), stacklevel=2)
            return None
        found = self._load(name)
        if isinstance(found, PluginError):
            raise found
        return found

    def working(self) -> dict[str, _Kind]:
        """Import all of them, and return those that can be used, by name."""
        loaded = {name: self._load(name) for name in self.packages if name not in self._built_in}
        return {name: each for name, each in loaded.items() if not isinstance(each, PluginError)}

    def complaints(self) -> dict[str, str]:
        """Import all of them, and return what is wrong with those that cannot be used, by name."""
        return {
            name: self._taken(name) if name in self._built_in else str(found)
            for name in self.packages
            if name in self._built_in or isinstance(found := self._load(name), PluginError)
        }

    def _load(self, name: str) -> _Kind | PluginError:
        if name not in self._loaded:
            self._loaded[name] = self._import(name)
        return self._loaded[name]

    def _import(self, name: str) -> _Kind | PluginError:
        entries = _found(self._group)[name]
        if len(entries) > 1:
            return PluginError(f"{self._called(name)} stands in several packages: remove one")
        try:
            return self._check(name, entries[0].load())
        except (Exception, SystemExit) as error:  # whatever another package does, a command goes on
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return PluginError(f"{self._called(name)} cannot be used ({said})")

    def _taken(self, name: str) -> str:
        return f"{self._called(name)} is left out: a built-in one has that name"

    def _called(self, name: str) -> str:
        return f"the {self._group[:-1]} {name!r} of {self.packages[name]}"
