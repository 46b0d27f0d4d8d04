"""Merge rules: from what was measured to how much of the snapshot each weight takes.

One rule a module; :mod:`~recall_lightning.merging.rules.base` says what a rule is given and gives.
"""

from recall_lightning.deprecation import renamed_names
from recall_lightning.merging.rules.base import (
    RULES,
    Coefficient,
    MergeInputs,
    MergeRule,
)
from recall_lightning.merging.rules.importance import Importance
from recall_lightning.merging.rules.kfac import KfacImportance, KfacSubspace
from recall_lightning.merging.rules.product import Product
from recall_lightning.merging.rules.similarity import Cka, Cosine, Rbf, Similarity
from recall_lightning.merging.rules.subspace import Subspace
from recall_lightning.merging.rules.uniform import Uniform

__all__ = [
    "Cka",
    "Coefficient",
    "Cosine",
    "Importance",
    "KfacImportance",
    "KfacSubspace",
    "MergeInputs",
    "MergeRule",
    "Product",
    "Rbf",
    "Similarity",
    "Subspace",
    "Uniform",
    "rule_by_name",
]


def rule_by_name(name: str, argument: str = "rule") -> MergeRule:
    """Build a rule that has a name, with its defaults, or the product of several.

    Args:
        name: Its name, or several with ``*`` between.
        argument: What an error calls the name.

    Raises:
        ValueError: For an unknown name (it lists the known ones), or a rule without defaults.

    Example:
        >>> type(rule_by_name("rbf*importance")).__name__
        'Product'
    """
    if "*" in name:
        return Product([rule_by_name(part.strip(), argument) for part in name.split("*")])
    if name not in RULES:
        others = ["auto", "never"] if argument == "end_rule" else []
        raise ValueError(
            f"{argument}={name!r} is unknown: use one of {', '.join([*others, *RULES])}, or a "
            "product: rbf*importance, or a MergeRule object"
        )
    try:
        return RULES[name]()
    except TypeError as error:
        rule = RULES[name].__name__
        raise ValueError(
            f"{argument}={name!r} has arguments of its own to give: use the rule's class, as in "
            f"{argument}=Uniform(0.2) or class_path: {rule} with init_args"
        ) from error


__getattr__ = renamed_names(
    "rule",
    "0.1.0",
    "0.3.0",
    ImportanceRule=Importance,
    KfacImportanceRule=KfacImportance,
    KfacSubspaceRule=KfacSubspace,
    ProductRule=Product,
    SimilarityRule=Rbf,
    SubspaceRule=Subspace,
    UniformRule=Uniform,
)
