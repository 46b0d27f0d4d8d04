import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.merging.functional import regmean
from recall_lightning.merging.functional.regmean import NormalEquations

seeds = st.integers(0, 1000)
few = settings(max_examples=20, deadline=None)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def halves(seed, samples=(40, 25), outputs=3, inputs=6):
    """Two regressions: inputs, targets and the least-squares weight (out, in) of each."""
    xs = [normal(seed + i, n, inputs) * (i + 1) for i, n in enumerate(samples)]
    ys = [normal(seed + 50 + i, n, outputs) for i, n in enumerate(samples)]
    fits = [torch.linalg.lstsq(x, y).solution.T for x, y in zip(xs, ys, strict=True)]
    return xs, ys, fits


@given(seed=seeds)
@few
def test_regmean_recovers_the_joint_least_squares_solution(seed):
    xs, ys, fits = halves(seed)
    joint = torch.linalg.lstsq(torch.cat(xs), torch.cat(ys)).solution.T
    merged = regmean(fits, [1, 1], [x.T @ x for x in xs], ridge=0.0)
    torch.testing.assert_close(merged, joint, rtol=1e-9, atol=1e-9)


@given(seed=seeds, ridge=st.floats(0, 1), scale=st.floats(0, 1), order=st.permutations(range(3)))
@few
def test_regmean_is_the_formula_for_models_in_any_order(seed, ridge, scale, order):
    models, weights = [normal(seed + i, 4, 6) for i in range(3)], [0.5, 2.0, 1.0]
    grams = [(x := normal(seed + 20 + i, 9, 6)).T @ x for i in range(3)]
    damped = [g * scale + (1 - scale) * torch.diag(g.diagonal()) for g in grams]
    total = sum(w * g for w, g in zip(weights, damped, strict=True))
    r = ridge * total.trace() / 6
    mixed = sum(w * m for w, m in zip(weights, models, strict=True)) / 3.5
    right = sum(w * m @ g for w, m, g in zip(weights, models, damped, strict=True)) + r * mixed
    expected = right @ torch.linalg.inv(total + r * torch.eye(6, dtype=torch.float64))
    args = [[items[i] for i in order] for items in (models, weights, grams)]
    merged = regmean(*args, ridge=ridge, off_diagonal_scale=scale)
    torch.testing.assert_close(merged, expected, rtol=1e-8, atol=1e-8)


@given(seed=seeds, ridge=st.floats(0, 1))
@few
def test_token_counts_are_diagonal_moments(seed, ridge):
    tables = [normal(seed + i, 5, 3) for i in range(2)]
    counts = [normal(seed + 9 + i, 5).abs() + 0.1 for i in range(2)]
    merged = regmean(tables, [1.0, 3.0], counts, ridge=ridge)
    # an embedding is a linear map of one-hot inputs, (dim, rows)
    diagonals = [torch.diag(count) for count in counts]
    expected = regmean([t.T for t in tables], [1.0, 3.0], diagonals, ridge=ridge).T
    torch.testing.assert_close(merged, expected)


def test_rows_that_no_model_looked_up_are_averaged():
    tables = [torch.zeros(2, 3), torch.ones(2, 3)]
    counts = [torch.tensor([5.0, 0.0]), torch.tensor([0.0, 0.0])]
    merged = regmean(tables, [1.0, 1.0], counts, ridge=1e-9)
    torch.testing.assert_close(merged, torch.tensor([[0.0] * 3, [0.5] * 3]))


def test_without_any_input_the_ridge_gives_the_average():
    models = [torch.zeros(2, 2), torch.ones(2, 2)]
    merged = regmean(models, [1, 3], [torch.zeros(2, 2)] * 2)
    torch.testing.assert_close(merged, torch.full((2, 2), 0.75))


def test_the_scale_of_the_weights_does_not_matter():
    xs, _, fits = halves(0)
    grams = [x.T @ x for x in xs]
    torch.testing.assert_close(regmean(fits, [0.2, 0.6], grams), regmean(fits, [1.0, 3.0], grams))


def test_an_empty_matrix_stays_empty():
    assert regmean([torch.zeros(0, 2)] * 2, [1, 1], [torch.eye(2)] * 2).shape == (0, 2)
    assert regmean([torch.zeros(2, 0)] * 2, [1, 1], [torch.zeros(0, 0)] * 2).shape == (2, 0)


@pytest.mark.parametrize("seed", range(4))  # rounding hides some from the Cholesky factorisation
@pytest.mark.parametrize("kind", ["too few inputs", "a dead input", "a token never seen"])
def test_singular_moments_need_a_ridge(kind, seed):
    models = [normal(i, 8, 8) for i in range(2)]
    grams = [(x := normal(seed + i, 3, 8)).T @ x for i in range(2)]
    if kind == "a dead input":
        grams = [torch.diag(torch.tensor([1.0] * 7 + [0.0]))] * 2
    if kind == "a token never seen":
        grams = [torch.tensor([1.0] * 7 + [0.0])] * 2
    with pytest.raises(ValueError, match=r"ridge=0.0 cannot settle: use a larger one, such as"):
        regmean(models, [1, 1], grams, ridge=0.0)
    assert regmean(models, [1, 1], grams).isfinite().all()


def test_inputs_of_very_different_size_are_not_taken_for_singular():
    xs, ys, _ = halves(0)
    xs = [x * torch.logspace(-9, 0, 6, dtype=torch.float64) for x in xs]
    fits = [torch.linalg.lstsq(x, y).solution.T for x, y in zip(xs, ys, strict=True)]
    joint = torch.linalg.lstsq(torch.cat(xs), torch.cat(ys)).solution.T
    merged = regmean(fits, [1, 1], [x.T @ x for x in xs], ridge=0.0)
    torch.testing.assert_close(merged, joint, rtol=1e-6, atol=0.0)


@given(seed=seeds, ridge=st.floats(1e-3, 1))
@few
def test_normal_equations_have_the_solution_and_condition_of_an_inverse(seed, ridge):
    rows, right = normal(seed, 9, 6), normal(seed + 1, 4, 6)
    matrix = rows.T @ rows
    equations = NormalEquations(matrix, ridge)
    full = matrix + ridge * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(equations.solve(right), right @ torch.linalg.inv(full))
    assert equations.condition == pytest.approx(float(torch.linalg.cond(full, 1)))
    assert torch.equal(matrix, rows.T @ rows)


def test_a_matrix_that_is_not_positive_has_an_infinite_condition():
    equations = NormalEquations(torch.diag(torch.tensor([1.0, -1.0])), 0.0)
    assert equations.singular
    assert equations.condition == float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g: regmean(m, [0, 0], g), r"weights=\[0, 0\] must not be negative and not all"),
        (lambda m, g: regmean([w[0] for w in m], [1, 1], g), "is for matrices, merge the other"),
        (lambda m, g: regmean(m, [1, 1], g[:1]), "moments has 1 entries for 2 models"),
        (lambda m, g: regmean(m, [1, 1], [g[0], g[1][0]]), r"moments\[1\] has the shape \(2,\)"),
        (lambda m, g: regmean(m, [1, 1], [g[0], g[1] / 0]), r"moments\[1\] must hold finite"),
        (lambda m, g: regmean(m, [1, 1], [g[0], -g[1]]), r"moments\[1\] must hold finite .* none"),
        (lambda m, g: regmean(m, [1, 1], g, ridge=-1.0), "ridge=-1.0 must be a finite number"),
        (
            lambda m, g: regmean(m, [1, 1], g, off_diagonal_scale=2.0),
            r"off_diagonal_scale=2.0 must lie in",
        ),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call([torch.ones(2, 2)] * 2, [torch.eye(2)] * 2)
