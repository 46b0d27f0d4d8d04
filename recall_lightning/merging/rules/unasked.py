"""What a rule finds in place of a statistic that it reads and has not asked for: an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Never

from recall_lightning.merging.rules.base import MergeInputs, MergeRule

_NEEDED = {
    "similarity": {"similarity"},
    "importance": {"importance"},
    "old_moments": {"moments"},
    "old_output_moments": {"moments", "curvature"},
    "new_moments": {"new_moments"},
    "new_output_moments": {"new_moments", "curvature"},
}
"""The fields of :class:`MergeInputs` that are measured, and what a rule that reads one needs."""


def only_asked(rule: MergeRule, inputs: MergeInputs) -> MergeInputs:
    """Return what a rule is given, where a field that is empty as it did not ask for it says so.

    Args:
        rule: What decides.
        inputs: What was measured for it.

    Returns:
        The same; reading such a field raises a ValueError.

    Example:
        >>> from recall_lightning.merging.rules import Uniform
        >>> from recall_lightning.merging.structure import Structure
        >>> only_asked(Uniform(0.2), MergeInputs(Structure([]))).similarity["layer"]
        Traceback (most recent call last):
        ValueError: Uniform reads inputs.similarity and does not ask for it: put 'similarity'...
    """
    unasked = {
        field: _Unasked(
            f"{type(rule).__name__} reads inputs.{field} and does not ask for it: put "
            f"{' and '.join(map(repr, sorted(lacking)))} into its needs"
        )
        for field, needed in _NEEDED.items()
        if (lacking := needed - rule.needs) and _is_empty(getattr(inputs, field))
    }
    return replace(inputs, **unasked)  # type: ignore[arg-type]


def _is_empty(field: Mapping[str, Any]) -> bool:
    return isinstance(field, _Unasked) or not field


class _Unasked(Mapping[str, Any]):
    """A mapping of which everything that is asked raises."""

    def __init__(self, said: str) -> None:
        self._said = said

    def __getitem__(self, name: str) -> Never:
        raise ValueError(self._said)

    def __iter__(self) -> Iterator[str]:
        raise ValueError(self._said)

    def __len__(self) -> int:
        raise ValueError(self._said)
