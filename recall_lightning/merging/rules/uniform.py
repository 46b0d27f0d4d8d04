"""Averaging: every block alike."""

from collections.abc import Sequence

from recall_lightning.merging.rules.base import MergeInputs, MergeRule


class UniformRule(MergeRule):
    """The same coefficient, 1, for every block: ``strength`` makes of it what is wanted.

    Several snapshots share it equally. In the loop it is sequential fine-tuning averaging (SFA,
    arXiv 2501.05559), at a task's end WiSE-FT (arXiv 2109.01903).

    Example:
        >>> from recall_lightning.representations.blocks import Block
        >>> blocks = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("0", "1")]
        >>> UniformRule().coefficients(MergeInputs(blocks))
        {'0': 1.0, '1': 1.0}
    """

    uses_representations = False

    def coefficients(self, inputs: MergeInputs) -> dict[str, float]:
        """Return 1 for every block."""
        return {block.name: 1.0 for block in inputs.blocks}

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[dict[str, float]]:  # type: ignore[override]
        """Share the 1 equally."""
        return [{block.name: 1 / len(inputs) for block in given.blocks} for given in inputs]
