"""Merge rules: from what was measured to how much of the snapshot each weight takes.

One rule a module; :mod:`~recall_lightning.merging.rules.base` says what a rule is given and gives.
"""

from recall_lightning.deprecation import renamed_names
from recall_lightning.merging.rules.base import Coefficient, MergeInputs, MergeRule
from recall_lightning.merging.rules.importance import Importance
from recall_lightning.merging.rules.kfac import KfacImportance, KfacSubspace
from recall_lightning.merging.rules.named import rule_by_name
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
