"""Averaging: every block alike."""

from collections.abc import Sequence

from recall_lightning.merging.rules.base import MergeInputs, MergeRule


class UniformRule(MergeRule):
    """The same coefficient for every block; several snapshots share it equally.

    By name it is 1, of which the callback's ``strength`` makes what is wanted. In the loop it is
    sequential fine-tuning averaging (SFA, arXiv 2501.05559), at a task's end WiSE-FT (arXiv
    2109.01903).

    Args:
        weight: The coefficient, in [0, 1].

    Raises:
        ValueError: If ``weight`` lies outside.

    Example:
        >>> from recall_lightning.measuring.blocks import Block
        >>> blocks = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("0", "1")]
        >>> UniformRule(0.3).coefficients(MergeInputs(blocks))
        {'0': 0.3, '1': 0.3}
    """

    uses_representations = False

    def __init__(self, weight: float = 1.0) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight!r} must lie in [0, 1]: the snapshot's weight")
        self.weight = float(weight)

    def coefficients(self, inputs: MergeInputs) -> dict[str, float]:
        """Return the weight for every block."""
        return {block.name: self.weight for block in inputs.blocks}

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[dict[str, float]]:  # type: ignore[override]
        """Share the weight equally."""
        share = self.weight / len(inputs)
        return [{block.name: share for block in given.blocks} for given in inputs]
