"""What is wrong with single rows, counted instead of raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

BadRows = Literal["skip", "error"]


class RowError(ValueError):
    """A row that nothing can be made of."""


Row = tuple[int, "dict[str, Any] | RowError"]
"""A row with its number, counted from 1: in text files the line on which it ends."""


@dataclass
class RowFaults:
    """What was wrong with the rows of one split.

    Attributes:
        where: What an error calls the split.
        rows: How many were read.
        bad: How many of them nothing could be made of.
        first: Which the first of those was, and what was wrong with it.
    """

    where: str
    rows: int = 0
    bad: int = 0
    first: str = ""

    def add(self, which: str, error: RowError, bad_rows: BadRows) -> None:
        """Count a bad row.

        Raises:
            MisconfigurationException: If ``bad_rows`` is ``"error"``.
        """
        self.bad += 1
        self.first = self.first or f"{which}: {error}"
        if bad_rows == "error":
            self.refuse()

    def refuse(self) -> None:
        """Raise for the first of the bad rows."""
        raise MisconfigurationException(
            f"{self.where}, {self.first}. Mend it, or leave such rows out: bad_rows='skip'"
        )

    def say(self) -> None:
        """Warn of what was left out."""
        if self.bad:
            rank_zero_warn(
                f"{self.where}: {self.bad} of {self.rows} rows were left out; the first: "
                f"{self.first}"
            )
