"""Rules that are composed of others."""

from collections.abc import Sequence

from torch import Tensor

from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.rules.base import Coefficient, MergeInputs, MergeRule


class ProductRule(MergeRule):
    """Multiply what several rules give each weight: ``"rbf*importance"`` by name.

    So a block that has drifted far keeps little even of its important parameters. Numbers multiply
    anything; a matrix of a linear map is multiplied by numbers alone.

    Args:
        rules: Two or more, of which at most one uses representations.

    Raises:
        ValueError: If two rules use representations or give matrices, or one gives matrices and
            another a number an element.

    Example:
        >>> from recall_lightning.merging.rules import UniformRule
        >>> from recall_lightning.measuring.blocks import Block
        >>> rule = ProductRule([UniformRule(), UniformRule()])
        >>> rule.coefficients(MergeInputs([Block("0", 1, 1.0, "0", ("0.weight",))]))
        {'0.weight': 1.0}
    """

    def __init__(self, rules: Sequence[MergeRule]) -> None:
        measuring = [rule for rule in rules if rule.uses_representations]
        if len(measuring) > 1:
            raise ValueError("a product of rules can measure one similarity, not two")
        matrices = sum(rule.uses_moments or rule.uses_curvature for rule in rules)
        if matrices and any(r.uses_importance and not r.uses_curvature for r in rules):
            raise ValueError(
                "importance times a subspace or kfac rule means nothing: one gives a number an "
                "element, the other a matrix; use one in the loop and the other as end_rule"
            )
        if matrices > 1:
            raise ValueError(
                "of subspace, kfac_subspace and kfac_importance, which give matrices, only one can "
                "be in a product"
            )
        self.rules = list(rules)
        self.uses_representations = bool(measuring)
        self.uses_importance = any(rule.uses_importance for rule in rules)
        self.uses_moments = any(rule.uses_moments for rule in rules)
        self.uses_curvature = any(rule.uses_curvature for rule in rules)

    def similarity(self, snapshot_states: Tensor, live_states: Tensor) -> float:
        """Compare the states as the rule that uses representations does."""
        (measuring,) = (rule for rule in self.rules if rule.uses_representations)
        return measuring.similarity(snapshot_states, live_states)

    def coefficients(self, inputs: MergeInputs) -> dict[str, Coefficient]:
        """Return the products, weight by weight."""
        given = [rule.coefficients(inputs) for rule in self.rules]
        products: dict[str, Coefficient] = {}
        scaled: _Scaled = {}  # the weights of a linear map go on sharing one matrix
        for block in inputs.blocks:
            for name in block.weights:
                product: Coefficient = 1.0
                for coefficients in given:
                    factor = coefficients.get(name, coefficients.get(block.name))
                    product = _times(product, factor, scaled)
                products[name] = product
        return products


_Scaled = dict[tuple[int, float], tuple[MapCoefficient, MapCoefficient]]


def _times(first: Coefficient, second: Coefficient | None, scaled: _Scaled) -> Coefficient:
    if second is None:
        raise ValueError("a rule of a product gave no coefficient for every block")
    if not isinstance(first, MapCoefficient) and not isinstance(second, MapCoefficient):
        return first * second
    matrix, number = (first, second) if isinstance(first, MapCoefficient) else (second, first)
    assert isinstance(matrix, MapCoefficient)
    if isinstance(number, MapCoefficient) or (isinstance(number, Tensor) and number.numel() > 1):
        raise ValueError(
            f"the matrix of {matrix.linear_map.weight!r} can be multiplied by a number alone, not "
            f"by a {type(number).__name__}"
        )
    key = (id(matrix), float(number))
    if key not in scaled:
        scaled[key] = (matrix, matrix.scaled(key[1]))  # the first is kept for its id's sake
    return scaled[key][1]
