"""The LightningModules that the recipes use."""

from recall_lightning.models.causal_lm import CausalLMModule
from recall_lightning.models.classifier import ClassifierModule
from recall_lightning.models.mlp import MLP

__all__ = ["MLP", "CausalLMModule", "ClassifierModule"]
