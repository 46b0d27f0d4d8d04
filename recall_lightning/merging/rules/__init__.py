"""Merge rules: from what was measured to how much of the snapshot each weight takes.

One rule a module; :mod:`~recall_lightning.merging.rules.base` says what a rule is given and gives.
"""

from dataclasses import dataclass
from typing import Literal

from recall_lightning.merging.rules.base import Coefficient, MergeInputs, MergeRule
from recall_lightning.merging.rules.importance import ImportanceRule
from recall_lightning.merging.rules.kfac import KfacImportanceRule, KfacSubspaceRule
from recall_lightning.merging.rules.product import ProductRule
from recall_lightning.merging.rules.similarity import SimilarityRule
from recall_lightning.merging.rules.subspace import SubspaceRule
from recall_lightning.merging.rules.uniform import UniformRule

__all__ = [
    "Coefficient",
    "ImportanceRule",
    "KfacImportanceRule",
    "KfacSubspaceRule",
    "MergeInputs",
    "MergeRule",
    "ProductRule",
    "RuleOptions",
    "SimilarityRule",
    "SubspaceRule",
    "UniformRule",
    "rule_by_name",
]

RULE_NAMES = (
    "rbf",
    "cka",
    "cosine",
    "uniform",
    "importance",
    "kfac_importance",
    "subspace",
    "kfac_subspace",
)


@dataclass(frozen=True)
class RuleOptions:
    """What the rules that ship can be told; each reads its own.

    Attributes:
        temperature: Of rbf, cka and cosine.
        sigma: Of rbf.
        importance_scale: Of importance and kfac_importance.
        new_inputs: Of subspace and kfac_subspace, as are ridge and mix.
        ridge: Of the moments of inputs.
        mix: In directions that no input has.
    """

    temperature: float = 1.0
    sigma: float | Literal["median"] = "median"
    importance_scale: float = 0.1
    new_inputs: float = 1.0
    ridge: float = 0.01
    mix: float = 0.3


def rule_by_name(
    name: str, options: RuleOptions = RuleOptions(), argument: str = "rule"
) -> MergeRule:
    """Build one of the rules that ship, or the product of several: ``"rbf*importance"``.

    Args:
        name: Its name, or several with ``*`` between.
        options: What rules can be told.
        argument: What an error calls the name.

    Raises:
        ValueError: For an unknown name (it lists the known ones) or a bad argument of the rule.

    Example:
        >>> type(rule_by_name("rbf*importance")).__name__
        'ProductRule'
    """
    if "*" in name:
        return ProductRule(
            [rule_by_name(part.strip(), options, argument) for part in name.split("*")]
        )
    if name not in RULE_NAMES:
        known = ", ".join(RULE_NAMES)
        raise ValueError(
            f"{argument}={name!r} is unknown: use one of {known}, or a product: rbf*importance, "
            "or a MergeRule object"
        )
    if name == "uniform":
        return UniformRule()
    if name in ("importance", "kfac_importance"):
        by_importance = ImportanceRule if name == "importance" else KfacImportanceRule
        return by_importance(options.importance_scale)
    if name in ("subspace", "kfac_subspace"):
        by_moments = SubspaceRule if name == "subspace" else KfacSubspaceRule
        return by_moments(options.new_inputs, options.ridge, options.mix)
    return SimilarityRule(name, options.temperature, options.sigma)
