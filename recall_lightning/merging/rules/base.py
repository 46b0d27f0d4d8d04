"""What a merge rule is given, and what it gives."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import Moments
from recall_lightning.merging.block_settings import Setting, numbers_of
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.structure import Structure

OF_MAPS = frozenset({"moments", "new_moments", "curvature"})
"""Those needs that linear maps are measured for."""

RULES: dict[str, type[MergeRule]] = {}
"""The rules that have a name, by it; they put themselves in."""


@dataclass(frozen=True)
class MergeInputs:
    """What a rule may decide from: what it ``needs``, and the weights.

    All of it is the callback's own: a rule reads it and writes nothing to it.

    Attributes:
        structure: The model's blocks, linear maps and LoRA updates.
        live: Name to live weight.
        snapshot: Name to snapshot weight.
        keep: What the old counts against the new, > 0. The merge itself applies it to numbers; a
            rule that gives matrices reads it.
        similarity: Block name to similarity in [0, 1]; for ``"similarity"``.
        importance: Name to the importance of each element to earlier tasks, ≥ 0, in the weight's
            shape, of mean 1 over the model for each task and summed over tasks; for
            ``"importance"``.
        old_moments: Name of a map to its mean input moments, summed over earlier tasks; for
            ``"moments"``.
        old_output_moments: Name of a map to the moments of the gradients at its outputs, of
            mean 1 over the model (times those of its inputs) for each task and summed over earlier
            tasks, whose number is its count; for ``"moments"`` with ``"curvature"``. Missing where
            predictions are not known.
        new_moments: Input moments of the current task; for ``"new_moments"``.
        new_output_moments: Output moments of the current task; for ``"new_moments"`` with
            ``"curvature"``.
        earlier_tasks: How many tasks the old moments and the importance sum up.
        curvature_mean: The means of those tasks' curvatures, summed, in nats a prediction for a
            squared weight, by which their moments at outputs were divided; NaN where not known.
    """

    structure: Structure
    live: Mapping[str, Tensor] = field(default_factory=dict)
    snapshot: Mapping[str, Tensor] = field(default_factory=dict)
    keep: float = 1.0
    similarity: Mapping[str, float] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    old_moments: Mapping[str, Moments] = field(default_factory=dict)
    old_output_moments: Mapping[str, Moments] = field(default_factory=dict)
    new_moments: Mapping[str, Moments] = field(default_factory=dict)
    new_output_moments: Mapping[str, Moments] = field(default_factory=dict)
    earlier_tasks: int = 1
    curvature_mean: float = math.nan

    @property
    def blocks(self) -> Sequence[Block]:
        """The model's blocks, shallow to deep."""
        return self.structure.blocks

    @property
    def maps(self) -> Sequence[LinearMap]:
        """The model's linear maps."""
        return self.structure.maps

    @property
    def lora_pairs(self) -> Sequence[LoraPair]:
        """The factors that are merged as one update."""
        return self.structure.lora_pairs


class MergeRule(ABC):
    """The plug-in point of :class:`~recall_lightning.RecallCallback`.

    Subclass it for a rule of your own and pass an object of it as ``rule``. With a ``name`` it is
    also known by that, on the command line too; one in a package that names it as an entry point,
    ``recall_lightning.plugins``, without being imported first.

    Args:
        strength: What multiplies the coefficients, in [0, 1]: a number, a list that is interpolated
            from the first block to the last, or a dict of name patterns to either.

    Attributes:
        name: What the rule is called by, which no other is; None for a rule that is only passed as
            an object.
        needs: The statistics that it decides from: ``"similarity"`` (a rule of this kind is a
            :class:`~recall_lightning.merging.rules.Similarity`), ``"importance"``, ``"moments"``
            (of earlier tasks' inputs), ``"new_moments"`` (of the current task's), and
            ``"curvature"`` (which has both measured at maps' outputs, too). What no rule needs is
            not measured.
        end_rule: The name of the rule that merges at a task's end where ``RecallCallback`` is
            given this one alone; None for this one.
        is_proximal: Whether its coefficients are the proximal step of a penalty. Within a task they
            then have the size of the optimizer steps since the last merge: of fewer than 48,
            or of a learning rate that has fallen, the old counts less.

    Raises:
        ValueError: If a strength lies outside [0, 1].

    Example:
        >>> class HalfOfTheFirst(MergeRule):
        ...     def coefficients(self, inputs):
        ...         return {b.name: 0.5 if i == 0 else 0.0 for i, b in enumerate(inputs.blocks)}
    """

    name: ClassVar[str | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    end_rule: ClassVar[str | None] = None
    is_proximal: bool = False
    strength: Setting = 1.0

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if isinstance(cls.needs, str):
            raise ValueError(f"needs of {cls.__qualname__} must be a set of names, not a text")
        cls.needs = frozenset(cls.needs)
        own = vars(cls).get("name")
        if own is None:
            return
        known = RULES.get(own, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"the rule {cls.__qualname__} cannot be called {own!r}: {known.__qualname__} is"
            )
        if own in ("auto", "never") or "*" in own:
            raise ValueError(
                f"the rule {cls.__qualname__} cannot be called {own!r}: that means else"
            )
        RULES[own] = cls

    def __init__(self, strength: Setting = 1.0) -> None:
        for value in numbers_of(strength):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"strength={value!r} must lie in [0, 1]: it multiplies coefficients"
                )
        self.strength = strength

    def __repr__(self) -> str:
        names = [n for n in inspect.signature(type(self).__init__).parameters if n in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

    @abstractmethod
    def coefficients(self, inputs: MergeInputs) -> Mapping[str, Coefficient]:
        """Return how much of the snapshot every block takes, by block name: numbers in [0, 1].

        A weight's own name may be a key too; its value then counts instead of its block's, and may
        be a tensor that broadcasts to the weight's shape or, of a linear map, a matrix.
        """

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[Mapping[str, Coefficient]]:
        """Return each snapshot's weights where several are merged at once.

        Args:
            inputs: One for each snapshot, oldest first.

        Returns:
            What :meth:`coefficients` returns, for each snapshot; a block's sum to 1 at most.

        Raises:
            ValueError: If there are several snapshots and the rule decides about one only.
        """
        if len(inputs) > 1:
            raise ValueError(
                f"{type(self).__name__} decides about one snapshot: keep one, or define its "
                "joint_coefficients"
            )
        return [self.coefficients(inputs[0])]

    @property
    def decides_jointly(self) -> bool:
        """Whether it can decide about several snapshots at once."""
        return type(self).joint_coefficients is not MergeRule.joint_coefficients

    @property
    def weighs_moments(self) -> bool:
        """Whether it decides from moments of both sides, earlier tasks and the current, alone."""
        return {"new_moments"} <= self.needs <= OF_MAPS
