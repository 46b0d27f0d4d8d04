"""Typical samples: a few that stand for a task's data."""

import warnings

import numpy as np
import torch
from torch import Tensor

_MINI_BATCH_FROM = 4096  # from so many candidates on, mini-batch k-means is the faster one


def choose_typical_samples(states: Tensor, count: int, seed: int = 0) -> Tensor:
    """Cluster hidden states by k-means and return each cluster's sample nearest to its centroid.

    Source: RECALL (arXiv 2510.20479), typical samples. Which representation is clustered is open
    there; the callback passes the deepest block's.

    Args:
        states: Hidden states of the candidates, (candidates, hidden), finite.
        count: Number of clusters, at least 1.
        seed: Seed of k-means++; no global random state is read or changed.

    Returns:
        Sorted indices into ``states``, (count,) int64, without repeats; fewer than ``count`` when
        the candidates have fewer distinct states.

    Raises:
        ValueError: If there are fewer candidates than ``count``, or a state is not finite.

    Example:
        >>> choose_typical_samples(torch.tensor([[0.0], [0.1], [0.3], [9.0], [9.1], [9.3]]), 2)
        tensor([1, 4])
    """
    if not 1 <= count <= len(states):
        raise ValueError(
            f"the typical samples must be 1 to {len(states)}, as many as the candidates, not "
            f"{count}"
        )
    if not torch.isfinite(states).all():
        raise ValueError(
            "the hidden states of the candidates hold NaN or infinite values, and must be finite"
        )
    from sklearn.cluster import KMeans, MiniBatchKMeans  # takes a second to import
    from sklearn.exceptions import ConvergenceWarning

    points = states.double().cpu().numpy()
    kmeans = MiniBatchKMeans if len(points) >= _MINI_BATCH_FROM else KMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # repeated points: see Returns
        clusters = kmeans(count, n_init=1, random_state=seed).fit(points)
    to_centroid = np.linalg.norm(points - clusters.cluster_centers_[clusters.labels_], axis=1)
    nearest = [
        members[np.argmin(to_centroid[members])]
        for members in (np.flatnonzero(clusters.labels_ == k) for k in range(count))
        if len(members)
    ]
    return torch.tensor(sorted(int(index) for index in nearest))
