import torch

from recall_lightning.measuring.moments import FullMoments
from tests.support.moments import rows


def test_full_moments_are_the_inputs_products():
    inputs, moments = rows(0), FullMoments.empty(6)
    for part in inputs.chunk(4):
        moments.update(part)
    torch.testing.assert_close(moments.matrix, inputs.T @ inputs)
    torch.testing.assert_close(moments.mean().matrix, inputs.T @ inputs / 20)
