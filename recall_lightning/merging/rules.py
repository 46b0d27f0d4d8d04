"""Merge rules: from what was measured to the weight that the snapshot gets in each block."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from recall_lightning.merging.coefficients import softmax_coefficients
from recall_lightning.representations.blocks import Block
from recall_lightning.representations.similarity import (
    cosine,
    linear_cka,
    median_squared_sigma,
    rbf,
)

RULE_NAMES = ("rbf", "cka", "cosine", "uniform")


@dataclass(frozen=True)
class MergeInputs:
    """What a rule may decide from.

    Attributes:
        blocks: The model's blocks, shallow to deep.
        similarity: Block name to similarity in [0, 1]; empty for a rule that measures none.
        live: Name to live weight.
        snapshot: Name to snapshot weight.
    """

    blocks: Sequence[Block]
    similarity: Mapping[str, float] = field(default_factory=dict)
    live: Mapping[str, Tensor] = field(default_factory=dict)
    snapshot: Mapping[str, Tensor] = field(default_factory=dict)


class MergeRule(ABC):
    """The plug-in point of :class:`~recall_lightning.RecallCallback`.

    Subclass it for a rule of your own and pass an object of it as ``rule``. A rule that sets
    ``uses_representations`` to False costs no probe and needs no typical samples.

    Example:
        >>> class HalfOfTheFirst(MergeRule):
        ...     uses_representations = False
        ...
        ...     def coefficients(self, inputs):
        ...         return {b.name: 0.5 if i == 0 else 0.0 for i, b in enumerate(inputs.blocks)}
    """

    uses_representations: bool = True

    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Compare one block's hidden states on the typical samples.

        Called once a block and, with several processes, averaged over them.

        Args:
            snapshot_states: (samples, hidden) float32.
            live_states: The same samples under the live model, same shape.

        Returns:
            The similarity in [0, 1]; NaN has the merge refused.
        """
        return rbf(snapshot_states, live_states, median_squared_sigma(snapshot_states))

    @abstractmethod
    def coefficients(self, inputs: MergeInputs) -> Mapping[str, float]:
        """Return the snapshot's weight in [0, 1] for every block, by block name."""


class SimilarityRule(MergeRule):
    """Softmax over similarities, block by block; with ``measure="rbf"`` RECALL's own rule.

    Args:
        measure: ``"rbf"`` (the paper's), ``"cka"`` (linear CKA) or ``"cosine"``.
        temperature: τ of the softmax.
        sigma: The RBF kernel's width: ``"median"`` takes it from the data, block by block.

    Raises:
        ValueError: For an unknown measure, or a temperature or sigma that is not positive.

    Example:
        >>> block = Block("layer", 1, 1.0, "layer", ("layer.weight",))
        >>> SimilarityRule("rbf").coefficients(MergeInputs([block], {"layer": 1.0}))
        {'layer': 0.5}
    """

    def __init__(
        self,
        measure: str = "rbf",
        temperature: float = 1.0,
        sigma: float | Literal["median"] = "median",
    ) -> None:
        if measure not in ("rbf", "cka", "cosine"):
            raise ValueError(f"measure={measure!r} is unknown: use rbf, cka or cosine")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r} must be a positive number")
        if sigma != "median" and (isinstance(sigma, str) or not sigma > 0):
            raise ValueError(f"sigma={sigma!r} must be a positive number or 'median'")
        self.measure = measure
        self.temperature = temperature
        self.sigma = sigma

    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Compare the states by the chosen measure."""
        if self.measure == "cka":
            return linear_cka(snapshot_states, live_states)
        if self.measure == "cosine":
            return cosine(snapshot_states, live_states)
        if self.sigma == "median":
            return super().similarity(snapshot_states, live_states)
        return rbf(snapshot_states, live_states, self.sigma**2)

    def coefficients(self, inputs: MergeInputs) -> dict[str, float]:
        """Turn similarities into weights by a softmax."""
        return softmax_coefficients(inputs.similarity, self.temperature)


class UniformRule(MergeRule):
    """The same weight for every block: sequential fine-tuning averaging (arXiv 2501.05559).

    Args:
        strength: The snapshot's weight in [0, 1].

    Raises:
        ValueError: If ``strength`` lies outside.

    Example:
        >>> block = Block("layer", 1, 1.0, "layer", ("layer.weight",))
        >>> UniformRule(0.3).coefficients(MergeInputs([block]))
        {'layer': 0.3}
    """

    uses_representations = False

    def __init__(self, strength: float = 0.3) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength!r} must lie in [0, 1]: the snapshot's weight")
        self.strength = strength

    def coefficients(self, inputs: MergeInputs) -> dict[str, float]:
        """Return ``strength`` for every block."""
        return {block.name: self.strength for block in inputs.blocks}


def rule_by_name(
    name: str, temperature: float, sigma: float | Literal["median"], strength: float
) -> MergeRule:
    """Build one of the rules that ship.

    Raises:
        ValueError: For an unknown name (it lists the known ones) or a bad argument of the rule.
    """
    if name not in RULE_NAMES:
        known = ", ".join(RULE_NAMES)
        raise ValueError(f"rule={name!r} is unknown: use one of {known}, or a MergeRule object")
    return UniformRule(strength) if name == "uniform" else SimilarityRule(name, temperature, sigma)
