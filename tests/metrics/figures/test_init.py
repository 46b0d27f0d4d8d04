import itertools

import pytest
import torch

from recall_lightning import metrics
from recall_lightning.metrics.figures import coefficients_figure, curves_figure, front_figure, save
from tests.metrics.figures.examples import (
    LONG,
    LOSSES,
    TASKS,
    coefficients,
    curves,
    front,
    matrix_figure,
    point,
)
from tests.support.processes import run_python


@pytest.mark.parametrize(
    "figure",
    [
        matrix_figure,
        lambda: matrix_figure(
            [[0.5]], ["a"], "a score with a long name, measured on held-out data"
        ),
        lambda: matrix_figure(torch.rand(8, 8), ["documentation"] * 8),
        lambda: matrix_figure(torch.rand(21, 20), LONG),
        lambda: matrix_figure(
            torch.rand(3, 3) * 1e4, ["$x_y$", "{y}_", "z" * 60], "perplexity in $_$"
        ),
        curves,
        lambda: curves(tasks=LONG),
        lambda: curves(tasks=LONG[:3], boundaries=[(0, LONG[0]), (9, LONG[1]), (1600, LONG[2])]),
        lambda: curves(tasks=["a"], boundaries=[], marks={}),
        coefficients,
        lambda: coefficients(1, 1),
        lambda: coefficients(40, 300),
        front,
        lambda: front(title="a front " * 12),
        lambda: front([10 ** (i / 4) for i in range(-20, 20)], title="many merges"),
        lambda: front([1e-6, 1e6], chosen=1e-6),
        lambda: front([1, 1.01], chosen=1.01, live=0.5),
        lambda: front([32.0], chosen=32.0, live=None),
        lambda: front(divergence=False),
        lambda: front([1.0], chosen=1.0, divergence=False),
    ],
)
def test_nothing_is_cut_off_and_no_names_overlap(figure):
    figure = figure()
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height

    axes = figure.axes[0]
    for names in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
        for one, other in itertools.pairwise(names):
            if not one.get_rotation():
                assert not one.get_window_extent().overlaps(other.get_window_extent())
    for legend in figure.legends:
        for text in axes.texts:
            assert not text.get_window_extent().overlaps(legend.get_window_extent())


def test_names_are_never_read_as_formulas():
    figure = curves(tasks=["$a_b$", "b"])
    front_axes = front(title="$a_b$").axes[0]
    axes, bar = matrix_figure([[1.0, 2.0]], ["$a_b$", "b"], name="in $_$").axes
    names = [*axes.get_xticklabels(), *axes.get_yticklabels(), bar.yaxis.label]
    names += [*figure.legends[0].get_texts(), *figure.axes[0].texts, figure.axes[0].yaxis.label]
    names += [front_axes.title, *front_axes.texts]
    assert not any(name.get_parse_math() for name in names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matrix_figure(tasks=["a"]), "`row_names` has 1 entries for 4 rows"),
        (lambda: matrix_figure(LOSSES[:1], ["a"]), "`task_names` has 1 entries for 4 columns"),
        (lambda: matrix_figure([1.0]), r"`matrix` has shape \(1,\)"),
        (lambda: matrix_figure([[]]), r"`matrix` has shape \(1, 0\)"),
        (lambda: curves_figure([1], [[1.0], [2.0]], ["a"], "x", [], {}), "`steps` has 1.*2 rows"),
        (lambda: curves_figure([1], [[1.0]], TASKS, "x", [], {}), "`task_names` has 4"),
        (lambda: coefficients_figure([[1.0]], [], [1], "x"), "`block_names` has 0"),
        (lambda: coefficients_figure([[1.0]], ["a"], [1, 2], "x"), "`steps` has 2 entries for 1 c"),
        (lambda: front_figure([], point(1.0)), "`points` is empty"),
        (lambda: save(coefficients(), "figure.pdf"), r"'figure\.pdf'.*'\.png'"),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.processes
def test_matplotlib_is_imported_on_use_and_pyplot_never(tmp_path):
    # Without the package above, which imports torchmetrics, which imports pyplot itself.
    code = (
        "import sys, types; above = types.ModuleType('recall_lightning.metrics');"
        "above.__path__ = sys.argv[1:]; sys.modules[above.__name__] = above;"
        "from recall_lightning.metrics import figures;"
        "assert 'matplotlib' not in sys.modules;"
        "figures.task_matrix_figure([[1.0]], ['a'], 'x', True);"
        "point = {'keep': 1, 'plasticity': 1}; figures.front_figure([point], point);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    run_python("-c", code, metrics.__path__[0], folder=tmp_path)
