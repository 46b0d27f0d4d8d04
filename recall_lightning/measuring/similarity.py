"""How alike two sets of hidden states are: one number a block, 1 for identical states.

Every function takes the states of the same samples under two models, each of shape
(samples, hidden), any floating dtype, and returns a float; the computation is in float32. States
that hold a NaN or an infinity have no similarity: the result is NaN.
"""

import torch
from torch import Tensor


def median_squared_sigma(states: Tensor) -> float:
    """Return the RBF kernel's σ² from the data: the median squared distance between two samples.

    With a fixed σ on states of hundreds of dimensions every similarity is 0 and every block gets
    the same coefficient; the median heuristic makes "far" mean far for this block.

    Args:
        states: Hidden states of one block, (samples, hidden).

    Returns:
        σ²; 0 for a single sample, which has no distance to any other.

    Example:
        >>> median_squared_sigma(torch.tensor([[0.0], [1.0], [3.0]]))
        4.0
    """
    if len(states) < 2:
        return 0.0
    return float(torch.pdist(states.float()).square().median())


def rbf(snapshot_states: Tensor, live_states: Tensor, squared_sigma: float) -> float:
    """Mean over samples of exp(−‖h_snapshot − h_live‖² / 2σ²).

    Source: RECALL (arXiv 2510.20479), similarity of hidden representations. In a block whose
    samples all coincide σ² is 0: the similarity then is 1 for unmoved states and 0 for others.

    Example:
        >>> states = torch.eye(3)
        >>> rbf(states, states, 1.0), round(rbf(states, states + 1, 1.0), 4)
        (1.0, 0.2231)
    """
    if not _finite(snapshot_states, live_states):
        return float("nan")
    distance = (snapshot_states.float() - live_states.float()).square().sum(dim=1)
    scale = 2 * max(squared_sigma, torch.finfo(torch.float32).tiny)
    return float(torch.exp(-distance / scale).mean())


def cosine(snapshot_states: Tensor, live_states: Tensor) -> float:
    """Mean over samples of the cosine between the two states, clamped to [0, 1].

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))  # doctest: +ELLIPSIS
        0.7071...
    """
    if not _finite(snapshot_states, live_states):
        return float("nan")
    cosines = torch.cosine_similarity(snapshot_states.float(), live_states.float(), dim=1)
    return float(cosines.mean().clamp(0, 1))


def linear_cka(snapshot_states: Tensor, live_states: Tensor) -> float:
    """Linear centred kernel alignment, ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) with centred X and Y.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), the plain (biased) estimator, which is high
    when there are fewer samples than dimensions. It sees no rotation and no scaling of the states.
    Two constant sets of states are alike (1); a constant and a varying one are not (0).

    Example:
        >>> states = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        >>> round(linear_cka(states, 3 * states + 1), 4)
        1.0
    """
    if not _finite(snapshot_states, live_states):
        return float("nan")
    x = snapshot_states.double() - snapshot_states.double().mean(dim=0)
    y = live_states.double() - live_states.double().mean(dim=0)
    # samples × samples Gram matrices: samples are dozens, hidden dimensions thousands
    gram_x, gram_y = x @ x.T, y @ y.T
    norms = gram_x.norm() * gram_y.norm()
    if norms == 0:
        return float(gram_x.norm() == gram_y.norm())
    return float(((gram_x * gram_y).sum() / norms).clamp(0, 1))


def _finite(*states: Tensor) -> bool:
    return all(bool(torch.isfinite(s).all()) for s in states)
