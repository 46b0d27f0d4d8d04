"""Merge rules: from what was measured to the weight that the snapshot gets in each block."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from torch import Tensor

from recall_lightning.merging.block_settings import Setting, numbers_of, setting_by_weight
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
        """Return the snapshot's weight in [0, 1] for every block, by block name.

        A weight's own name may be a key too; its value then counts instead of its block's.
        """

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[Mapping[str, float]]:
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
                f"{type(self).__name__} decides about one snapshot: use snapshots=1, or define its "
                "joint_coefficients"
            )
        return [self.coefficients(inputs[0])]


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
        return self.joint_coefficients([inputs])[0]

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[dict[str, float]]:  # type: ignore[override]
        """Take the softmax over all snapshots and the live model, as the paper does."""
        similarity = {
            block: [given.similarity[block] for given in inputs] for block in inputs[0].similarity
        }
        weights = softmax_coefficients(similarity, self.temperature)
        return [{block: w[i] for block, w in weights.items()} for i in range(len(inputs))]


class UniformRule(MergeRule):
    """Weights given beforehand; one for every block is sequential fine-tuning averaging.

    Source: SFA (arXiv 2501.05559).

    Args:
        strength: The snapshot's weight in [0, 1]: a number, a list that is interpolated over depth,
            or a mapping of name patterns to either (see
            :func:`~recall_lightning.merging.block_settings.setting_by_weight`). Several snapshots
            share it equally.

    Raises:
        ValueError: If ``strength`` lies outside.

    Example:
        >>> blocks = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("0", "1")]
        >>> UniformRule([0.5, 0.3]).coefficients(MergeInputs(blocks))
        {'0.weight': 0.5, '1.weight': 0.3}
    """

    uses_representations = False

    def __init__(self, strength: Setting = 0.3) -> None:
        for value in numbers_of(strength):
            if not 0 <= value <= 1:
                raise ValueError(f"strength={value!r} must lie in [0, 1]: the snapshot's weight")
        self.strength = strength

    def coefficients(self, inputs: MergeInputs) -> dict[str, float]:
        """Return ``strength``: by block where it is a number, else by weight."""
        if isinstance(self.strength, Real):
            return {block.name: float(self.strength) for block in inputs.blocks}
        return setting_by_weight(self.strength, inputs.blocks)

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[dict[str, float]]:  # type: ignore[override]
        """Share ``strength`` equally."""
        shared = {n: w / len(inputs) for n, w in self.coefficients(inputs[0]).items()}
        return [shared] * len(inputs)


def rule_by_name(
    name: str, temperature: float, sigma: float | Literal["median"], strength: Setting
) -> MergeRule:
    """Build one of the rules that ship.

    Raises:
        ValueError: For an unknown name (it lists the known ones) or a bad argument of the rule.
    """
    if name not in RULE_NAMES:
        known = ", ".join(RULE_NAMES)
        raise ValueError(f"rule={name!r} is unknown: use one of {known}, or a MergeRule object")
    return UniformRule(strength) if name == "uniform" else SimilarityRule(name, temperature, sigma)
