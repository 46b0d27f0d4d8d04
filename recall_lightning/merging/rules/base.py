"""What a merge rule is given, and what it gives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, Moments
from recall_lightning.measuring.similarity import median_squared_sigma, rbf
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.lora.pairs import LoraPair

Coefficient = float | Tensor | MapCoefficient
"""The snapshot's weight: one for a block or a weight, one an element, or a linear map's matrix."""


@dataclass(frozen=True)
class MergeInputs:
    """What a rule may decide from.

    Attributes:
        blocks: The model's blocks, shallow to deep.
        similarity: Block name to similarity in [0, 1]; empty for a rule that measures none.
        live: Name to live weight.
        snapshot: Name to snapshot weight.
        importance: Name to the importance of each element to earlier tasks, ≥ 0, in the weight's
            shape, of mean 1 over the model for each task and summed over tasks; for a rule that
            sets ``uses_importance``.
        maps: The model's linear maps; for a rule that sets ``uses_moments`` or ``uses_curvature``.
        old_moments: Weight name of a map to its mean input moments, summed over earlier tasks; for
            the same rules.
        new_moments: The same of the current task; for a rule that sets ``uses_moments``.
        old_output_moments: Weight name of a map to the moments of the gradients at its outputs, of
            mean 1 over the model (times those of its inputs) for each task and summed over earlier
            tasks, whose number is its count; for a rule that sets ``uses_curvature``, as is the
            next. Missing where a map is too wide or predictions are not known.
        new_output_moments: The same of the current task, for a rule that sets ``uses_moments`` too.
        earlier_tasks: How many tasks the old moments and the importance sum up.
        lora_pairs: The factors that are merged as one update.
    """

    blocks: Sequence[Block]
    similarity: Mapping[str, float] = field(default_factory=dict)
    live: Mapping[str, Tensor] = field(default_factory=dict)
    snapshot: Mapping[str, Tensor] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Sequence[LinearMap] = ()
    old_moments: Mapping[str, Moments] = field(default_factory=dict)
    new_moments: Mapping[str, Moments] = field(default_factory=dict)
    old_output_moments: Mapping[str, FullMoments] = field(default_factory=dict)
    new_output_moments: Mapping[str, FullMoments] = field(default_factory=dict)
    earlier_tasks: int = 1
    lora_pairs: Sequence[LoraPair] = ()


class MergeRule(ABC):
    """The plug-in point of :class:`~recall_lightning.RecallCallback`.

    Subclass it for a rule of your own and pass an object of it as ``rule``. What a rule does not
    use is not measured: one that sets ``uses_representations`` to False costs no probe and needs no
    typical samples, and ``uses_importance``, ``uses_moments`` and ``uses_curvature`` are False
    unless set.

    Example:
        >>> class HalfOfTheFirst(MergeRule):
        ...     uses_representations = False
        ...
        ...     def coefficients(self, inputs):
        ...         return {b.name: 0.5 if i == 0 else 0.0 for i, b in enumerate(inputs.blocks)}
    """

    uses_representations: bool = True
    uses_importance: bool = False
    uses_moments: bool = False
    uses_curvature: bool = False

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
                f"{type(self).__name__} decides about one snapshot: use snapshots=1, or define its "
                "joint_coefficients"
            )
        return [self.coefficients(inputs[0])]
