import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from recall_lightning.merging.functional.sparsification import random_mask
from recall_lightning.merging.functional.task_vectors import (
    breadcrumbs,
    dare,
    task_arithmetic,
    ties,
)

seeds = st.integers(0, 1000)
densities = st.floats(0.05, 0.99)
few = settings(max_examples=25, deadline=None)
PEFT_ELECTION = {"sum": "total", "count": "frequency"}


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def setting(seed, count=3, shape=(6, 5)):
    """Models, their weights and a base, with the task vectors as the methods compute them."""
    base = normal(seed + 5000, *shape)
    models = [base + normal(10 * seed + i, *shape) for i in range(count)]
    weights = (normal(seed + 9000, count).abs() + 0.1).tolist()
    return models, weights, base, [model - base for model in models]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(seed=seeds, scale=st.floats(-2, 2))
@few
def test_task_arithmetic_agrees_with_peft(seed, scale):
    models, weights, base, deltas = setting(seed)
    theirs = merge_utils.task_arithmetic(deltas, torch.tensor(weights))
    close(task_arithmetic(models, weights, base, scale=scale), base + scale * theirs)


@given(seed=seeds, density=densities)
@few
@pytest.mark.parametrize("elect", PEFT_ELECTION)
def test_ties_agrees_with_peft(elect, seed, density):
    models, weights, base, deltas = setting(seed)
    theirs = merge_utils.ties(deltas, torch.tensor(weights), density, PEFT_ELECTION[elect])
    close(ties(models, weights, base, density=density, elect=elect), base + theirs)


@given(seed=seeds, density=densities)
@few
@pytest.mark.parametrize("elect", PEFT_ELECTION)
def test_dare_agrees_with_peft_given_its_masks(elect, seed, density):
    models, weights, base, deltas = setting(seed)
    given_masks = iter([random_mask(base.shape, density, seed, "w", str(i)) for i in range(3)] * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bernoulli", lambda share: next(given_masks).to(share))
        summed = merge_utils.dare_linear(deltas, torch.tensor(weights), density)
        elected = merge_utils.dare_ties(
            deltas, torch.tensor(weights), density, PEFT_ELECTION[elect]
        )
    ours = dare(models, weights, base, "w", density=density, seed=seed)
    torch.testing.assert_close(ours, base + summed, rtol=1e-4, atol=1e-4)
    ours = dare(models, weights, base, "w", density=density, seed=seed, combine="ties", elect=elect)
    torch.testing.assert_close(ours, base + elected, rtol=1e-4, atol=1e-4)


@given(seed=seeds, density=densities, normalize=st.booleans())
@few
def test_ties_with_weighted_election_is_the_formula_spelt_out(seed, density, normalize):
    models, weights, base, deltas = setting(seed)
    weights[0] = -0.05  # others are larger: no sum is near zero
    weighted = [
        merge_utils.prune(delta, density, "magnitude") * weight
        for delta, weight in zip(deltas, weights, strict=True)
    ]
    expected = base.clone()
    for place in range(base.numel()):
        entries = [w.flatten()[place].item() for w in weighted]
        sign = 1 if sum(entries) >= 0 else -1
        agree = [i for i, entry in enumerate(entries) if entry * sign > 0]
        total = sum(weights[i] for i in agree) if normalize else 1
        expected.view(-1)[place] += sum(entries[i] for i in agree) / (total or 1)
    convention = {"elect": "weighted_sum", "divide": "weights" if normalize else "none"}
    merged = ties(models, weights, base, density=density, **convention)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)


def test_a_vote_of_zero_elects_plus_and_zero_entries_do_not_count():
    models = [torch.tensor([2.0, 0.0, -3.0]), torch.tensor([-2.0, 0.0, 0.0])]
    assert ties(models, [1, 1], torch.zeros(3), density=1.0).tolist() == [2, 0, -3]


@pytest.mark.parametrize(
    ("elect", "expected"), [("sum", -3.0), ("weighted_sum", 4.0), ("count", 5.0)]
)
def test_elections_differ(elect, expected):
    models = [torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([-3.0])]
    weights = {"sum": [1, 1, 1], "weighted_sum": [4, 0, 1], "count": [4, 2, 1]}[elect]
    merged = ties(models, weights, torch.zeros(1), density=1.0, elect=elect, divide="none")
    assert merged.item() == expected


@pytest.mark.parametrize(("divide", "expected"), [("count", 3.5), ("weights", 7 / 3), ("none", 7)])
def test_divisions_differ(divide, expected):
    models = [torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([-3.0])]
    merged = ties(models, [1, 2, 1], torch.zeros(1), density=1.0, divide=divide)
    assert merged.item() == pytest.approx(expected)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [0.3, -0.3]])
def test_agreeing_weights_that_cancel_do_not_divide(weights):
    models = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, -2.0])]
    merged = ties(models, weights, torch.zeros(2), density=1.0, divide="weights")
    undivided = ties(models, weights, torch.zeros(2), density=1.0, divide="none")
    assert merged[0] == undivided[0]
    assert merged.isfinite().all()


def test_agreeing_weights_that_cancel_but_for_rounding_do_not_divide():
    models, weights = [torch.tensor([1.0])] * 3, [0.3, 0.6, -0.9]  # to 6e-8 in float32
    assert ties(models, weights, torch.zeros(1), density=1.0, divide="weights").abs() < 1e-6


def test_models_that_equal_the_base_give_the_base():
    base = normal(0, 4, 4)
    for method in (ties, dare):
        for divide in ("count", "weights", "none"):
            merged = method([base, base], [1, 1], base, density=0.3, divide=divide)
            assert torch.equal(merged, base)
    assert torch.equal(breadcrumbs([base], [1], base, density=0.3, gamma=0.1), base)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_entry_survives_trimming(shape):
    model, base = torch.full(shape, 3.0), torch.full(shape, 1.0)
    assert torch.equal(ties([model], [1], base, density=0.1), model)
    assert torch.equal(breadcrumbs([model], [1], base, density=0.1, gamma=0.5), model)


def test_empty_tensors_stay_empty():
    empty = torch.zeros(0, 3)
    assert ties([empty], [1], empty, density=0.1).shape == (0, 3)
    assert dare([empty], [1], empty, density=0.1, rescale="l1").shape == (0, 3)
    assert breadcrumbs([empty], [1], empty, density=0.1, gamma=0.1).shape == (0, 3)


def test_breadcrumbs_cuts_both_tails():
    base, model = torch.zeros(10), torch.tensor([5, -9, 1, 0, 7, -3, 8, 2, -6, 4.0])
    merged = breadcrumbs([model], [2.0], base, density=0.4, gamma=0.2, scale=0.5)
    assert merged.tolist() == [5, 0, 0, 0, 7, 0, 0, 0, -6, 4]


def test_breadcrumbs_without_an_upper_tail_keeps_the_largest():
    base, model = torch.zeros(4), torch.tensor([5, -9, 1, 0.0])
    assert breadcrumbs([model], [1], base, density=0.5, gamma=0.0).tolist() == [5, -9, 0, 0]


def test_dares_expectation_over_seeds_is_the_task_vector():
    models, _, base, deltas = setting(0, count=1, shape=(3,))
    merged = [dare(models, [1], base, "w", density=0.3, seed=seed) for seed in range(4000)]
    spread = (deltas[0].abs() * (0.7 / 0.3) ** 0.5 / 4000**0.5).max().item()
    torch.testing.assert_close(torch.stack(merged).mean(0), models[0], rtol=0.0, atol=4 * spread)


def test_dare_under_l1_keeps_each_task_vectors_norm():
    models, _, base, deltas = setting(0, count=1, shape=(50,))
    merged = dare(models, [1], base, "w", density=0.3, rescale="l1")
    torch.testing.assert_close((merged - base).abs().sum(), deltas[0].abs().sum())


def test_dares_mask_is_the_same_wherever_a_parameter_is_merged():
    models, weights, base, _ = setting(0)
    alone = dare(models, weights, base, "b", density=0.5)
    dare(models, weights, base, "a", density=0.5)
    assert torch.equal(alone, dare(models, weights, base, "b", density=0.5))


METHODS = {
    "task_arithmetic": (task_arithmetic, {}),
    "ties": (ties, {"density": 0.5}),
    "ties by count": (ties, {"density": 0.5, "elect": "count", "divide": "weights"}),
    "dare": (dare, {"density": 0.5}),
    "dare and ties": (dare, {"density": 0.5, "combine": "ties", "rescale": "l1"}),
    "breadcrumbs": (breadcrumbs, {"density": 0.5, "gamma": 0.1}),
}
every_method = pytest.mark.parametrize(("method", "options"), METHODS.values(), ids=METHODS)


@given(seed=seeds, order=st.permutations(range(3)))
@few
@every_method
def test_the_order_of_models_changes_nothing(method, options, seed, order):
    models, weights, base, _ = setting(seed)
    keys = ["x", "y", "z"]
    keyed = [{"model_keys": k} if method is dare else {} for k in (keys, [keys[i] for i in order])]
    permuted = [models[i] for i in order], [weights[i] for i in order]
    close(
        method(*permuted, base, **options, **keyed[1]),
        method(models, weights, base, **options, **keyed[0]),
    )


def test_the_order_of_models_elects_no_other_sign():
    deltas = [torch.tensor([value]) for value in (0.1, 1e8, -1e8)]  # float32 loses the 0.1
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        models = [-deltas[i] for i in order]
        assert ties(models, [1] * 3, torch.zeros(1), density=1.0, divide="none") < -9e7


@given(seed=seeds)
@few
def test_weights_1_0_return_the_first_model(seed):
    models, _, base, _ = setting(seed)
    close(task_arithmetic(models, [1, 0, 0], base), models[0])


@every_method
def test_half_precision_is_computed_in_float32_and_rounded_once(method, options):
    models, weights, base, _ = setting(0, shape=(60, 50))
    halves, origin = [m.bfloat16() for m in models], base.bfloat16()
    exact = method([m.float() for m in halves], weights, origin.float(), **options)
    assert torch.equal(method(halves, weights, origin, **options), exact.bfloat16())


@every_method
def test_the_base_is_left_alone(method, options):
    models, weights, base, _ = setting(0)
    before = base.clone()
    method(models, weights, base, **options)
    assert torch.equal(base, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: task_arithmetic(m, [1], b[:2]), r"base has the shape \(2,\)"),
        (lambda m, b: task_arithmetic(m, [1], b.int()), r"base holds torch\.int32"),
        (lambda m, b: task_arithmetic(m, [1], b / 0), "base holds NaN or infinite"),
        (lambda m, b: task_arithmetic(m, [1], b, scale=float("inf")), "scale=inf must be a finite"),
        (lambda m, b: ties(m, [1], b, density=1.5), r"density=1.5 must lie in"),
        (lambda m, b: ties(m, [1], b, density=0.5, elect="total"), "elect='total' is unknown: use"),
        (lambda m, b: ties(m, [1], b, density=0.5, divide="sum"), "divide='sum' is unknown: use"),
        (lambda m, b: dare(m, [1], b, density=0.5, rescale="l2"), "rescale='l2' is unknown: use"),
        (lambda m, b: dare(m, [1], b, density=0.5, combine="sum"), "combine='sum' is unknown: use"),
        (lambda m, b: dare(m, [1], b, "w", ["a", "b"], density=0.5), "model_keys has 2 entries"),
        (lambda m, b: dare(m, [1], b, density=0.0), "density=0.0 must lie in"),
        (lambda m, b: breadcrumbs(m, [1], b, density=0.9, gamma=0.2), "must not exceed 1"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call([torch.ones(3)], torch.zeros(3))
