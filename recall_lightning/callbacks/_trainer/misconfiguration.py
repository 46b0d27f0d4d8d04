"""What plain functions find wrong, as users of Lightning expect it."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException


@contextmanager
def misconfiguration(where: str = "") -> Iterator[None]:
    """Raise a ValueError as a MisconfigurationException.

    Args:
        where: What was configured, to stand before the message.

    Raises:
        MisconfigurationException: For a ValueError inside.

    Example:
        >>> with misconfiguration("strength"):
        ...     raise ValueError("weight=2 must lie in [0, 1]")
        Traceback (most recent call last):
        lightning...MisconfigurationException: strength: weight=2 must lie in [0, 1]
    """
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(f"{where}: {error}" if where else str(error)) from error
