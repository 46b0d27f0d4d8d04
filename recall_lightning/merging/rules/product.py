"""Rules that are composed of others."""

from collections.abc import Sequence

from torch import Tensor

from recall_lightning.deprecation import renamed_names
from recall_lightning.merging.block_settings import Setting, numbers_of
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.rules.base import OF_MAPS, MergeInputs, MergeRule
from recall_lightning.merging.rules.importance import Importance
from recall_lightning.merging.rules.unasked import only_asked


class Product(MergeRule):
    """Multiply what several rules give each weight: ``"rbf*importance"`` by name.

    So a block that has drifted far keeps little even of its important parameters. Numbers multiply
    anything; a matrix of a linear map is multiplied by numbers alone.

    Args:
        rules: Two or more, of which at most one measures similarity and one gives matrices.
        strength: What multiplies the products; see :class:`MergeRule`.

    Raises:
        ValueError: If two rules measure similarity or give matrices, one gives matrices and another
            a number an element, or one has a strength of its own.

    Example:
        >>> from recall_lightning.measuring.blocks import Block
        >>> from recall_lightning.merging.rules import Uniform
        >>> from recall_lightning.merging.structure import Structure
        >>> structure = Structure([Block("0", 1, 1.0, "0", ("0.weight",))])
        >>> Product([Uniform(0.5), Uniform(0.4)]).coefficients(MergeInputs(structure))
        {'0.weight': 0.2}
    """

    def __init__(self, rules: Sequence[MergeRule], strength: Setting = 1.0) -> None:
        super().__init__(strength)
        if len(rules) < 2 or not all(isinstance(rule, MergeRule) for rule in rules):
            raise ValueError(
                f"a product must be of two rules or more, each a MergeRule, not {rules!r}"
            )
        similar = [rule for rule in rules if "similarity" in rule.needs]
        if len(similar) > 1:
            raise ValueError("a product must have one rule of similarity, not two")
        of_maps = [rule for rule in rules if rule.needs & OF_MAPS]
        if of_maps and any(isinstance(r, Importance) and r not in of_maps for r in rules):
            raise ValueError(
                "importance times a subspace or kfac rule means nothing: one gives a number an "
                "element, the other a matrix; use one in the loop and the other as end_rule"
            )
        if len(of_maps) > 1:
            raise ValueError(
                "a product must have one of subspace, kfac_subspace and kfac_importance, which "
                "give matrices, not two"
            )
        if any(set(numbers_of(rule.strength)) != {1.0} for rule in rules):
            raise ValueError(
                "a rule of a product has a strength of its own: give it to the product"
            )
        self.rules = list(rules)
        self.needs = frozenset().union(*(rule.needs for rule in rules))  # type: ignore[misc]
        self.is_proximal = any(rule.is_proximal for rule in rules)
        if similar:
            self.similarity = getattr(similar[0], "similarity", None)

    def coefficients(self, inputs: MergeInputs) -> dict[str, Coefficient]:
        """Return the products, weight by weight."""
        given = [rule.coefficients(only_asked(rule, inputs)) for rule in self.rules]
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
        raise ValueError("a rule of a product must give a coefficient for every block")
    if not isinstance(first, MapCoefficient) and not isinstance(second, MapCoefficient):
        return first * second
    matrix, number = (first, second) if isinstance(first, MapCoefficient) else (second, first)
    assert isinstance(matrix, MapCoefficient)
    if isinstance(number, MapCoefficient) or (isinstance(number, Tensor) and number.numel() > 1):
        raise ValueError(
            f"the matrix of {matrix.linear_map.weight!r} must be multiplied by a number, not by a "
            f"{type(number).__name__}"
        )
    key = (id(matrix), float(number))
    if key not in scaled:
        scaled[key] = (matrix, matrix.scaled(key[1]))  # the first is kept for its id's sake
    return scaled[key][1]


__getattr__ = renamed_names("rule", "0.1.0", "0.3.0", ProductRule=Product)
