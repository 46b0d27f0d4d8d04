"""What a model predicts: a distribution that labels can be drawn from, and told apart from another.

One kind a file; a kind of your own is a subclass of :class:`Predictions`.
"""

from recall_lightning.measuring.predictions.base import KINDS, Predictions
from recall_lightning.measuring.predictions.bernoulli import Bernoulli
from recall_lightning.measuring.predictions.categorical import Categorical
from recall_lightning.measuring.predictions.distribution import OfDistribution
from recall_lightning.measuring.predictions.finding import FoundPredictions
from recall_lightning.measuring.predictions.gaussian import Gaussian

__all__ = [
    "KINDS",
    "Bernoulli",
    "Categorical",
    "FoundPredictions",
    "Gaussian",
    "OfDistribution",
    "Predictions",
]
