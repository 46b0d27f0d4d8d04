"""Second moments of what a linear map is given: full, low-rank plus diagonal, or by row.

One kind a file.
"""

from recall_lightning.measuring.moments.base import Moments
from recall_lightning.measuring.moments.full import FullMoments
from recall_lightning.measuring.moments.low_rank import LowRankMoments
from recall_lightning.measuring.moments.matrix import MatrixMoments, noise_of
from recall_lightning.measuring.moments.row_counts import RowCounts
from recall_lightning.measuring.moments.stored import moments_from

__all__ = [
    "FullMoments",
    "LowRankMoments",
    "MatrixMoments",
    "Moments",
    "RowCounts",
    "moments_from",
    "noise_of",
]
