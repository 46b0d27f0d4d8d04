import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.merging.lora.low_rank import LoraFactors, merge_lora

property_test = settings(max_examples=25, deadline=None)
sizes = st.tuples(*[st.integers(1, 9)] * 3)  # rank, in, out: also ranks above the dimensions


def random_factors(size, seed, scale=1.0, dtype=torch.float32):
    rank, inputs, outputs = size
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    b = torch.randn(outputs, rank, generator=generator, dtype=torch.float64) * 0.3
    return LoraFactors(a.to(dtype), b.to(dtype), scale)


def delta(factors):
    """The full matrix in float64."""
    return factors.scale * factors.b.double() @ factors.a.double()


def best_of_rank(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    energy = s.square()
    return (u[:, :rank] * s[:rank]) @ vh[:rank], float(energy[rank:].sum() / energy.sum())


def assert_same_delta(merged, expected, atol=2e-5):
    torch.testing.assert_close(delta(merged), expected, rtol=0, atol=atol)


@property_test
@given(sizes, st.integers(1, 4), st.integers(0, 99))
def test_sum_of_ranks_is_exact(size, other_rank, seed):
    one = random_factors(size, seed, scale=2.0)
    two = random_factors((other_rank, *size[1:]), seed + 1, scale=0.5)
    merged = merge_lora([one, two], [0.7, -0.4], rank=one.rank + two.rank)
    assert merged.rank == one.rank + two.rank
    assert merged.discarded_energy == 0
    assert_same_delta(merged, 0.7 * delta(one) - 0.4 * delta(two))


@property_test
@given(sizes, st.integers(0, 99), st.booleans())
def test_lower_rank_is_the_best_approximation(size, seed, continues):
    one, two = random_factors(size, seed, 2.0), random_factors(size, seed + 1, 0.5)
    like = one if continues else None
    merged = merge_lora([one, two], [0.6, 0.4], rank=one.rank, like=like)
    expected, lost = best_of_rank(0.6 * delta(one) + 0.4 * delta(two), one.rank)
    assert_same_delta(merged, expected)
    assert merged.discarded_energy == pytest.approx(lost, abs=1e-5)


# wider than four ranks and more: narrower than the matrix, and wider than it on either side
@pytest.mark.parametrize("size", [(60, 90, 120), (150, 90, 120), (150, 120, 90)])
def test_the_leading_part_of_many_ranks_is_the_best_approximation(size):
    factors = random_factors(size, 0)
    falling = torch.logspace(0, -3, size[0])
    factors = LoraFactors(falling[:, None] * factors.a, factors.b)
    merged = merge_lora([factors], [1.0], rank=4)
    expected, lost = best_of_rank(delta(factors), 4)
    assert_same_delta(merged, expected)
    assert merged.discarded_energy == pytest.approx(lost, abs=1e-6)


def test_many_ranks_whose_sum_has_few_lose_nothing():
    one = random_factors((3, 20, 30), 0)
    many = LoraFactors(one.a.repeat(10, 1), one.b.repeat(1, 10))
    merged = merge_lora([many], [0.1], rank=4)
    assert_same_delta(merged, delta(one))
    assert merged.discarded_energy == 0
    assert not merged.a[3].any()


@property_test
@given(sizes, st.integers(0, 99))
def test_order_does_not_matter(size, seed):
    members = [random_factors(size, seed + i) for i in range(3)]
    forth = merge_lora(members, [0.5, 0.3, 0.2], rank=size[0])
    back = merge_lora(members[::-1], [0.2, 0.3, 0.5], rank=size[0])
    assert_same_delta(forth, delta(back))


def test_float64_is_computed_as_such():
    one = random_factors((3, 20, 10), 0, dtype=torch.float64)
    two = random_factors((3, 20, 10), 1, dtype=torch.float32)
    for like in (None, one):
        merged = merge_lora([one, two], [0.5, 0.5], rank=3, like=like)
        expected, _ = best_of_rank(0.5 * delta(one) + 0.5 * delta(two), 3)
        assert merged.a.dtype == torch.float64
        assert_same_delta(merged, expected, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    one, two = (random_factors((2, 12, 9), seed, dtype=dtype) for seed in (0, 1))
    merged = merge_lora([one, two], [0.5, 0.5])
    assert merged.a.dtype == torch.float32
    assert_same_delta(merged, 0.5 * delta(one) + 0.5 * delta(two), atol=1e-6)


def test_singular_values_are_split_evenly():
    merged = merge_lora([random_factors((3, 10, 8), 0), random_factors((2, 10, 8), 1)], [1.0, 1.0])
    gram = merged.a @ merged.a.T
    torch.testing.assert_close(gram, merged.b.T @ merged.b, atol=1e-5, rtol=0)
    torch.testing.assert_close(gram, gram.diag().diag(), atol=1e-5, rtol=0)


def test_missing_ranks_are_zero():
    one = random_factors((2, 6, 5), 0)
    merged = merge_lora([one, one], [0.5, 0.5], rank=9)
    assert merged.a.shape == (9, 6)
    assert merged.b.shape == (5, 9)
    assert_same_delta(merged, delta(one))
    zero = merge_lora([LoraFactors(torch.ones(2, 3), torch.zeros(4, 2))], [1.0])
    assert torch.equal(delta(zero), torch.zeros(4, 3).double())


def test_opposite_updates_cancel_to_zero():
    one = random_factors((3, 30, 20), 0)
    merged = merge_lora([one, one], [1.0, -1.0], rank=3)
    assert not merged.b.any()
    assert merged.discarded_energy == 0


@pytest.mark.parametrize("left", [1e-3, 1e-6, 1e-9])
def test_what_is_left_of_many_that_nearly_cancel_is_the_best_approximation(left):
    many = [random_factors((2, 50, 40), seed, dtype=torch.float64) for seed in range(3)]
    noise = [random_factors((2, 50, 40), seed, dtype=torch.float64) for seed in range(3, 6)]
    opposite = [LoraFactors(m.a, left * n.b - m.b) for m, n in zip(many, noise, strict=True)]
    total = sum(map(delta, [*many, *opposite]))
    best, discarded = best_of_rank(total, 2)
    merged = merge_lora([*many, *opposite], [1.0] * 6, rank=2)
    assert merged.discarded_energy == pytest.approx(discarded, rel=1e-3)
    assert_same_delta(merged, best, atol=1e-3 * left)


@property_test
@given(sizes, st.integers(0, 99), st.floats(0.01, 0.99))
def test_merging_with_itself_changes_no_bit(size, seed, weight):
    live = random_factors(size, seed, 2.0)
    then = LoraFactors(live.a.clone(), live.b.clone(), 2.0)
    merged = merge_lora([live, then], [1 - weight, weight], like=live)
    assert torch.equal(merged.a, live.a)
    assert torch.equal(merged.b, live.b)


def test_equal_factors_are_scaled_by_the_sum_of_weights():
    live = random_factors((4, 30, 20), 0)
    merged = merge_lora([live, live], [0.5, 0.4], like=live)
    torch.testing.assert_close(merged.a, live.a, atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.b, 0.9 * live.b, atol=1e-6, rtol=0)


@property_test
@given(sizes, st.integers(0, 99))
def test_continued_factors_of_the_same_update_are_the_live_ones(size, seed):
    live = random_factors(size, seed, 2.0, torch.float64)
    twin = LoraFactors(live.a * 2, live.b, 1.0)  # the same update, but not the same tensors
    merged = merge_lora([live, twin], [0.5, 0.5], like=live)
    torch.testing.assert_close(merged.a, live.a, atol=1e-8, rtol=0)
    torch.testing.assert_close(merged.b, live.b, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dead", [0, 1, 4])
def test_snapshot_without_update_shrinks_b_alone(dead):
    live = random_factors((4, 30, 20), 0)
    live.b[:, :dead] = 0
    fresh = LoraFactors(random_factors((4, 30, 20), 1).a, torch.zeros(20, 4))
    merged = merge_lora([live, fresh], [0.7, 0.3], like=live)
    torch.testing.assert_close(merged.a, live.a, atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.b, 0.7 * live.b, atol=1e-6, rtol=0)


def test_fresh_adapters_keep_a():
    live, then = (
        LoraFactors(random_factors((4, 30, 20), seed).a, torch.zeros(20, 4)) for seed in (0, 1)
    )
    merged = merge_lora([live, then], [0.5, 0.5], like=live)
    assert torch.equal(merged.a, live.a)
    assert not merged.b.any()


@property_test
@given(sizes, st.integers(0, 99), st.integers(0, 3), st.floats(0.05, 0.95))
def test_no_direction_dies(size, seed, zero_columns, weight):
    live, then = random_factors(size, seed), random_factors(size, seed + 1)
    live.b[:, :zero_columns] = 0
    merged = merge_lora([live, then], [1 - weight, weight], like=live)
    rows, columns = torch.linalg.norm(merged.a, dim=1), torch.linalg.norm(merged.b, dim=0)
    assert torch.isfinite(merged.a).all()
    assert torch.isfinite(merged.b).all()
    assert (rows + columns > 1e-3).all()
    if live.rank <= live.a.shape[1]:
        assert (rows > 1e-4).all()


def test_rows_keep_their_length_however_often_merged():
    live, then = random_factors((4, 40, 30), 0), random_factors((4, 40, 30), 1)
    length = torch.linalg.norm(live.a)
    for _ in range(20):
        live = merge_lora([live, then], [0.9, 0.1], like=live)
    torch.testing.assert_close(torch.linalg.norm(live.a), length, rtol=1e-4, atol=0)
    assert torch.linalg.norm(live.b) <= 1.5 * torch.linalg.norm(then.b)


def test_a_turns_no_further_than_needed():
    live = random_factors((4, 40, 30), 0)
    near = LoraFactors(live.a + 0.01 * random_factors((4, 40, 30), 1).a, live.b * 1.1)
    merged = merge_lora([live, near], [0.7, 0.3], like=live)
    assert torch.linalg.norm(merged.a - live.a) <= torch.linalg.norm(near.a - live.a)
    assert torch.linalg.norm(merged.b - live.b) <= torch.linalg.norm(near.b - live.b)


@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize("strange", ["zero", "equal rows", "elsewhere"])
def test_a_that_cannot_reach_the_update_is_completed(strange, scale):
    then = random_factors((3, 20, 10), 0)
    rows = {
        "zero": torch.zeros(3, 20),
        "equal rows": torch.ones(3, 20),
        "elsewhere": torch.linalg.qr(then.a.T, mode="complete")[0][:, 3:6].T,
    }[strange]
    live = LoraFactors(rows.contiguous(), torch.zeros(10, 3), scale)
    merged = merge_lora([live, then], [0.6, 0.4], like=live)
    assert_same_delta(merged, 0.4 * delta(then), atol=1e-6)
    assert torch.linalg.norm(merged.b) <= 2 * torch.linalg.norm(then.b) / scale
    assert torch.linalg.norm(merged.a) <= 2 * max(torch.linalg.norm(f.a) for f in (live, then))


def test_factors_of_weight_zero_are_not_counted():
    one, two = random_factors((2, 9, 8), 0, 2.0), random_factors((2, 9, 8), 1)
    merged = merge_lora([one, two], [1.0, 0.0], like=one)
    assert torch.equal(merged.a, one.a)
    assert_same_delta(merge_lora([one, two], [0.0, 1.0], rank=2), delta(two), atol=1e-6)


def test_result_has_the_scale_of_like():
    live, then = random_factors((2, 9, 8), 0, -4.0), random_factors((2, 9, 8), 1, 0.5)
    merged = merge_lora([live, then], [0.5, 0.5], like=live)
    assert merged.scale == -4
    assert_same_delta(merged, best_of_rank(0.5 * delta(live) + 0.5 * delta(then), 2)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda f: ([], []), "a weight each: there are 0 and 0"),
        (lambda f: ([f], [0.5, 0.5]), "a weight each: there are 1 and 2"),
        (lambda f: ([f], [float("nan")]), "weight .* finite"),
        (lambda f: ([f, random_factors((2, 4, 5), 0)], [1, 1]), "different shapes"),
        (lambda f: ([LoraFactors(f.a / 0, f.b)], [1.0]), "NaN or infinite"),
        (lambda f: ([f], [1.0], 0), "at least 1, not 0"),
        (lambda f: ([f], [1.0], 3, f), "must be 2, not 3"),
        (lambda f: ([f], [1.0], None, LoraFactors(f.a, f.b, 0.0)), "scale 0"),
    ],
)
def test_refuses_with_a_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        merge_lora(*arguments(random_factors((2, 6, 5), 0)))


def test_refuses_factors_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 3\) and B \(4, 3\)"):
        LoraFactors(torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="finite, not inf"):
        LoraFactors(torch.ones(2, 3), torch.ones(4, 2), float("inf"))
