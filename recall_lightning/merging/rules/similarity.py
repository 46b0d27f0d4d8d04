"""RECALL's own rule: the more alike the hidden states, the more of the snapshot."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from recall_lightning.deprecation import renamed_names
from recall_lightning.measuring.similarity import cosine, linear_cka, median_squared_sigma, rbf
from recall_lightning.merging.block_settings import Setting
from recall_lightning.merging.coefficients.softmax import softmax_coefficients
from recall_lightning.merging.rules.base import MergeInputs, MergeRule


class Similarity(MergeRule):
    """Softmax over similarities, block by block: w = softmax(S / τ).

    A similarity of your own is a subclass that defines :meth:`similarity`. Source: RECALL (arXiv
    2510.20479), merge coefficients.

    Args:
        temperature: τ > 0 of the softmax. Smaller leaves drifted blocks more to the live model:
            less forgetting prevented, more learned.
        strength: What multiplies the coefficients; see :class:`MergeRule`.

    Raises:
        ValueError: For an argument out of its range.
    """

    needs = frozenset({"similarity"})

    def __init__(self, temperature: float = 1.0, strength: Setting = 1.0) -> None:
        super().__init__(strength)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r} must be a positive number")
        self.temperature = temperature

    @abstractmethod
    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Compare one block's hidden states on the typical samples.

        Called once a block and, with several processes, averaged over them.

        Args:
            snapshot_states: (samples, hidden) float32.
            live_states: The same samples under the live model, same shape.

        Returns:
            The similarity in [0, 1]; NaN has the merge refused.
        """

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


class Rbf(Similarity):
    """RECALL's own rule: an RBF kernel between the hidden states.

    Args:
        temperature: That of :class:`Similarity`.
        sigma: Width of the kernel in units of the hidden states; ``"median"`` takes it from the
            snapshot's own states, block by block.
        strength: What multiplies the coefficients; see :class:`MergeRule`.

    Raises:
        ValueError: For an argument out of its range.

    Example:
        >>> from recall_lightning.measuring.blocks import Block
        >>> from recall_lightning.merging.structure import Structure
        >>> block = Block("layer", 1, 1.0, "layer", ("layer.weight",))
        >>> Rbf().coefficients(MergeInputs(Structure([block]), similarity={"layer": 1.0}))
        {'layer': 0.5}
    """

    name = "rbf"

    def __init__(
        self,
        temperature: float = 1.0,
        sigma: float | Literal["median"] = "median",
        strength: Setting = 1.0,
    ) -> None:
        super().__init__(temperature, strength)
        if sigma != "median" and (isinstance(sigma, str) or not sigma > 0):
            raise ValueError(f"sigma={sigma!r} must be a positive number or 'median'")
        self.sigma = sigma

    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Return the mean of the kernel over samples."""
        if self.sigma == "median":
            return rbf(snapshot_states, live_states, median_squared_sigma(snapshot_states))
        return rbf(snapshot_states, live_states, self.sigma**2)


class Cka(Similarity):
    """Linear centred kernel alignment in the kernel's place; see :class:`Similarity`.

    Source: Kornblith et al. 2019 (arXiv 1905.00414).
    """

    name = "cka"

    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Return the alignment of the two sets of states."""
        return linear_cka(snapshot_states, live_states)


class Cosine(Similarity):
    """The mean cosine in the kernel's place; see :class:`Similarity`."""

    name = "cosine"

    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Return the mean cosine over samples."""
        return cosine(snapshot_states, live_states)


__getattr__ = renamed_names("rule", "0.1.0", "0.3.0", SimilarityRule=Rbf)
