import pytest

from tests.metrics.figures.examples import coefficients, texts


def test_coefficients_have_the_deepest_block_at_the_top():
    axes, bar = coefficients().axes
    assert texts(axes.get_yticklabels()) == [f"model.model.layers.{i}" for i in range(3)]
    assert not axes.yaxis_inverted()
    assert axes.get_ylabel() == "block, deepest at top"
    assert texts(axes.get_xticklabels()) == ["450", "550"]
    assert bar.get_ylabel() == "past"
    assert texts(axes.texts) == ["0.00", "0.20", "0.40", "0.60", "0.80", "1.00"]


def test_coefficients_have_a_fixed_colour_range():
    assert coefficients().axes[0].collections[0].get_clim() == (0, 1)
    assert coefficients(vmin=-1, vmax=2).axes[0].collections[0].get_clim() == (-1, 2)


@pytest.mark.parametrize(
    ("blocks", "merges", "numbers"), [(12, 12, 144), (13, 2, 0), (2, 13, 0), (40, 500, 0)]
)
def test_coefficients_are_written_while_they_are_few(blocks, merges, numbers):
    axes = coefficients(blocks, merges).axes[0]
    assert len(axes.texts) == numbers
    assert len(axes.get_yticklabels()) == blocks
    assert 2 <= len(axes.get_xticklabels()) <= 40
