import math

import pytest
import torch

from tests.metrics.figures.examples import LONG, matrix_figure, texts


@pytest.mark.parametrize("higher", [True, False])
def test_numbers_stand_out_from_every_colour(higher):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    matrix = torch.linspace(0, 1, 400).reshape(20, 20)
    axes = matrix_figure(matrix, LONG, higher=higher).axes[0]
    for score, text in zip(matrix.flatten().tolist(), axes.texts, strict=True):
        ground = luminance(axes.collections[0].to_rgba(score))
        ink = {"black": 0.0, "white": 1.0}[text.get_color()]
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.93621, "0.936"),
        (0.05, "0.050"),
        (5.25, "5.25"),
        (93.621, "93.6"),
        (1234.5, "1234"),
        (1234567, "1.23e+06"),
        (0.0000123, "1.23e-05"),
        (-5.25, "-5.25"),
        (0.0, "0.00"),
        (math.inf, "inf"),
    ],
)
def test_scores_of_every_size_have_a_readable_number(score, text):
    assert texts(matrix_figure([[score]], ["a"]).axes[0].texts) == [text]
