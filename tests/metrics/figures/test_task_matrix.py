import pytest

from tests.metrics.figures.examples import LOSSES, NAN, TASKS, matrix_figure, texts


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
