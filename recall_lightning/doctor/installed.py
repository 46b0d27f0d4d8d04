"""What is installed of what the package names, needed or optional; nothing of it is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

_TOOLS = ("docs", "test")  # the extras of those who work on the package


@dataclass(frozen=True)
class Package:
    """A package that recall-lightning names.

    Attributes:
        name: The package's.
        needs: The versions that will do, such as ``">=2.6"``.
        extra: The optional part that it is for; empty for one that is always needed.
        version: What is installed; None for nothing.
        fits: Whether that will do.
    """

    name: str
    needs: str
    extra: str
    version: str | None
    fits: bool

    @property
    def missing(self) -> bool:
        """Whether something that is always needed is not there, or in no version that will do."""
        return not self.fits and not (self.extra and self.version is None)

    def __str__(self) -> str:
        if self.version is None:
            what = f"pip install 'recall-lightning[{self.extra}]'" if self.extra else "needed"
            return f"not installed ({what})"
        return self.version if self.fits else f"{self.version}, but needs {self.needs}"


def packages() -> Iterator[Package]:
    """Yield what the installed metadata of recall-lightning names, but for the tools of its tests.

    Raises:
        PackageNotFoundError: If it is not installed itself.

    Example:
        >>> next(package.name for package in packages())
        'torch'
    """
    from packaging.requirements import Requirement

    for text in requires("recall-lightning") or []:
        requirement = Requirement(text)
        extra = _extra_of(str(requirement.marker or ""))
        if extra in _TOOLS:
            continue
        found = version_of(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        yield Package(requirement.name, str(requirement.specifier), extra, found, fits)


def version_of(name: str) -> str | None:
    """Return a package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _extra_of(marker: str) -> str:
    """Return the extra that a marker is of.

    >>> _extra_of('extra == "lora"'), _extra_of("")
    ('lora', '')
    """
    _, _, after = marker.partition("extra ==")
    return after.strip().split(" ")[0].strip("\"'")
