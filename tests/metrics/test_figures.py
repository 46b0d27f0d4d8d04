import itertools
import math
import subprocess
import sys

import matplotlib.image
import pytest
import torch

from recall_lightning.metrics import figures
from recall_lightning.metrics.figures import (
    coefficients_figure,
    curves_figure,
    save,
    task_matrix_figure,
)

NAN = math.nan
TASKS = ["documentation", "source", "names", "bytecode"]
LOSSES = [[1.6, 2.2, 3.9, 5.6], [2.1, 1.3, 3.2, 5.2], [2.6, 1.9, 1.8, 5.1], [3.3, 2.7, 2.6, 1.2]]
LONG = [f"a task with a rather long name, number {i}" for i in range(20)]


def texts(artists):
    return [artist.get_text() for artist in artists]


def matrix_figure(matrix=LOSSES, tasks=TASKS, name="loss", higher=False, **options):
    return task_matrix_figure(matrix, tasks, name, higher, **options)


def curves(n=17, tasks=TASKS, boundaries=None, marks=None):
    scores = torch.linspace(1.2, 6, n * len(tasks)).reshape(n, len(tasks))
    starts = [(100 * n * i // len(tasks), task) for i, task in enumerate(tasks)]
    return curves_figure(
        range(0, 100 * n, 100),
        scores,
        tasks,
        "loss",
        starts if boundaries is None else boundaries,
        {"merge": [450, 550]} if marks is None else marks,
    )


def coefficients(blocks=3, merges=2, **options):
    names = [f"model.model.layers.{i}" for i in range(blocks)]
    values = torch.linspace(0, 1, blocks * merges).reshape(blocks, merges)
    return coefficients_figure(
        values, names, range(450, 450 + 100 * merges, 100), "past", **options
    )


def test_task_matrix_writes_every_score_into_its_cell():
    cells = matrix_figure().axes[0].texts
    assert texts(cells) == [f"{loss:.2f}" for row in LOSSES for loss in row]
    assert [text.get_position() for text in cells[:5]] == [
        (0.5, 0.5),
        (1.5, 0.5),
        (2.5, 0.5),
        (3.5, 0.5),
        (0.5, 1.5),
    ]


def test_task_matrix_names_rows_columns_and_the_colour_bar():
    axes, bar = matrix_figure(name="loss (nats)").axes
    assert texts(axes.get_xticklabels()) == TASKS
    assert texts(axes.get_yticklabels()) == [f"after {task}" for task in TASKS]
    assert axes.yaxis_inverted()
    assert bar.get_ylabel() == "loss (nats)"


def test_task_matrix_may_start_before_training():
    axes = matrix_figure([[4.0] * 4, *LOSSES]).axes[0]
    assert texts(axes.get_yticklabels())[:2] == ["before training", "after documentation"]


def test_task_matrix_takes_fewer_rows_and_names_for_them():
    assert len(matrix_figure(LOSSES[:2]).axes[0].get_yticklabels()) == 2
    axes = matrix_figure(LOSSES[:2], row_names=["plain", "merged"]).axes[0]
    assert texts(axes.get_yticklabels()) == ["plain", "merged"]


def test_scores_not_measured_stay_blank():
    axes = matrix_figure([[0.9, NAN], [0.5, 0.8]], ["a", "b"]).axes[0]
    assert texts(axes.texts) == ["0.900", "0.500", "0.800"]
    assert axes.collections[0].get_array().mask.tolist() == [[False, True], [False, False]]
    assert axes.patch.get_hatch()


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_score_is_the_darker_one_and_at_the_top_of_the_bar(higher):
    axes, bar = matrix_figure([[1.0, 2.0]], ["a", "b"], higher=higher).axes
    low, high = (sum(axes.collections[0].to_rgba(score)[:3]) for score in (1.0, 2.0))
    assert (high < low) == higher
    assert bar.yaxis_inverted() != higher
    assert bar.get_title() == "better ↑"


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


def test_curves_have_a_line_a_task_in_different_styles():
    figure = curves(tasks=LONG)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 17]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_curves_show_scores_over_steps_with_gaps_for_nan():
    figure = curves_figure([0, 5, 9], [[1.0], [NAN], [3.0]], ["a"], "loss", [], {})
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 5, 9]
    assert line.get_ydata()[[0, 2]].tolist() == [1, 3]
    assert math.isnan(line.get_ydata()[1])
    assert line.get_marker() == "o"  # or a score between two gaps would be invisible


def test_curves_label_axes_tasks_and_marks():
    figure = curves(marks={"merge": [450, 550], "snapshot": [400]})
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "loss")
    assert texts(figure.legends[0].get_texts()) == [*TASKS, "merge", "snapshot"]
    assert texts(axes.texts) == TASKS
    assert [text.get_position()[0] for text in axes.texts] == [0, 425, 850, 1275]


def test_curves_mark_steps_below_every_score():
    figure = curves(marks={"merge": [450, 550], "snapshot": [400]})
    axes = figure.axes[0]
    figure.draw_without_rendering()
    merge, snapshot = axes.lines[-2:]
    assert list(merge.get_xdata()) == [450, 550]
    assert list(snapshot.get_xdata()) == [400]
    lowest = axes.transData.transform((0, 1.2))[1]
    assert snapshot.get_window_extent().y1 < lowest


def test_names_of_boundaries_that_are_close_move_apart():
    figure = curves(boundaries=[(0, "documentation"), (5, "source"), (5, "names"), (9, "bytecode")])
    at = [text.get_position()[0] for text in figure.axes[0].texts]
    assert min(b - a for a, b in itertools.pairwise(at)) > 50


def test_a_boundary_may_name_something_that_is_no_curve():
    assert texts(curves(boundaries=[(300, "another corpus")]).axes[0].texts) == ["another corpus"]


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


@pytest.mark.filterwarnings("error")  # matplotlib warns when a layout does not fit
def test_long_names_leave_the_axes_their_size():
    for figure in (curves(), curves(tasks=[3 * name for name in LONG[:4]])):
        figure.draw_without_rendering()
        box = figure.axes[0].get_window_extent()
        assert box.width / figure.dpi > 5
        assert box.height / figure.dpi > 2.8


def test_names_are_never_read_as_formulas():
    figure = curves(tasks=["$a_b$", "b"])
    axes, bar = matrix_figure([[1.0, 2.0]], ["$a_b$", "b"], name="in $_$").axes
    names = [*axes.get_xticklabels(), *axes.get_yticklabels(), bar.yaxis.label]
    names += [*figure.legends[0].get_texts(), *figure.axes[0].texts, figure.axes[0].yaxis.label]
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
        (lambda: save(coefficients(), "figure.pdf"), r"'figure\.pdf'.*'\.png'"),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_save_writes_an_image_and_nothing_else(tmp_path):
    path = save(coefficients(), tmp_path / "run" / "figures" / "past.png")
    assert matplotlib.image.imread(path).ndim == 3
    assert [file.name for file in path.parent.iterdir()] == ["past.png"]


def test_save_replaces_whole_files_only(tmp_path, monkeypatch):
    path = save(coefficients(), tmp_path / "past.png")
    before = path.read_bytes()
    broken = coefficients()

    def fail_half_way(file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(broken, "savefig", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save(broken, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["past.png"]


def test_matplotlib_is_imported_on_use_and_pyplot_never():
    # By its path, as the package imports torchmetrics, which imports pyplot itself.
    code = (
        "import runpy, sys; module = runpy.run_path(sys.argv[1]);"
        "assert 'matplotlib' not in sys.modules;"
        "module['task_matrix_figure']([[1.0]], ['a'], 'x', True);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, figures.__file__], check=True)


def test_a_tasks_name_stands_at_its_start_even_before_the_first_score():
    figure = figures.curves_figure([40, 80], [[0.5], [0.6]], ["a"], "val/acc", [(0, "a")])
    name = next(text for text in figure.axes[0].texts if text.get_text() == "a")
    assert name.get_position()[0] == 0
