"""A figure of each kind, small, for the tests of all."""

import math

import torch

from recall_lightning.metrics.figures import (
    coefficients_figure,
    curves_figure,
    front_figure,
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


def point(keep, left=None, divergence=True):
    left = 1 / (1 + keep) if left is None else left
    return {"keep": keep, "plasticity": left, "divergence": 2 * left**2 if divergence else None}


def front(keeps=(0.001, 0.03, 0.2, 1, 6, 32), chosen=0.05, live=2.0, divergence=True, **options):
    points = [point(keep, divergence=divergence) for keep in keeps]
    return front_figure(points, point(chosen, divergence=divergence), live, **options)
