"""Averaging: every block alike."""

from collections.abc import Sequence

from recall_lightning.deprecation import renamed_names
from recall_lightning.merging.block_settings import Setting, numbers_of, setting_by_weight
from recall_lightning.merging.rules.base import MergeInputs, MergeRule


class Uniform(MergeRule):
    """The same coefficient for every block; several snapshots share it equally.

    In the loop it is sequential fine-tuning averaging (SFA, arXiv 2501.05559), at a task's end
    WiSE-FT (arXiv 2109.01903).

    Args:
        weight: The coefficient, in [0, 1], or a list that is interpolated from the first block to
            the last, or a dict of name patterns to either; not 1 for all, which would put the
            snapshot back at every merge.

    Raises:
        ValueError: If ``weight`` lies outside.

    Example:
        >>> from recall_lightning.measuring.blocks import Block
        >>> from recall_lightning.merging.structure import Structure
        >>> blocks = [Block(name, 1, 0.5, name, (f"{name}.weight",)) for name in ("0", "1")]
        >>> Uniform([0.3, 0.1]).coefficients(MergeInputs(Structure(blocks)))
        {'0.weight': 0.3, '1.weight': 0.1}
    """

    name = "uniform"

    def __init__(self, weight: Setting) -> None:
        super().__init__()
        values = numbers_of(weight)
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"weight={value!r} must lie in [0, 1]: the snapshot's weight")
        if set(values) == {1.0}:
            raise ValueError(
                "weight=1 puts the snapshot back at every merge: give a smaller one, such as 0.2"
            )
        self.weight = weight

    def coefficients(self, inputs: MergeInputs) -> dict[str, float]:
        """Return the coefficient of every weight."""
        return self.joint_coefficients([inputs])[0]

    def joint_coefficients(self, inputs: Sequence[MergeInputs]) -> list[dict[str, float]]:  # type: ignore[override]
        """Share the weight equally."""
        by_weight = setting_by_weight(self.weight, inputs[0].blocks)
        share = {name: value / len(inputs) for name, value in by_weight.items()}
        return [dict(share) for _ in inputs]


__getattr__ = renamed_names("rule", "0.1.0", "0.3.0", UniformRule=Uniform)
