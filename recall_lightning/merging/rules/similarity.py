"""RECALL's own rule: the more alike the hidden states, the more of the snapshot."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from recall_lightning.measuring.similarity import cosine, linear_cka, rbf
from recall_lightning.merging.coefficients.softmax import softmax_coefficients
from recall_lightning.merging.rules.base import MergeInputs, MergeRule


class SimilarityRule(MergeRule):
    """Softmax over similarities, block by block; with ``measure="rbf"`` RECALL's own rule.

    Args:
        measure: ``"rbf"`` (the paper's), ``"cka"`` (linear CKA) or ``"cosine"``.
        temperature: τ of the softmax.
        sigma: The RBF kernel's width: ``"median"`` takes it from the data, block by block.

    Raises:
        ValueError: For an unknown measure, or a temperature or sigma that is not positive.

    Example:
        >>> from recall_lightning.measuring.blocks import Block
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
