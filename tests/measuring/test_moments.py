import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage

from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    RowCounts,
    moments_from,
    noise_of,
)

few = settings(max_examples=15, deadline=None)


def rows(seed, count=20, width=6, rank=6):
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(count, rank, generator=generator)
    return factors @ torch.randn(rank, width, generator=generator)


def of_low_rank(inputs, rank, parts=3):
    moments = LowRankMoments.empty(inputs.shape[1], rank)
    for part in inputs.chunk(parts):
        moments.update(part)
    return moments


def dense(moments):
    return moments.factor.T @ moments.factor + torch.diag(moments.rest)


def test_a_sketch_finds_the_leading_directions_of_a_falling_spectrum():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(1, -3, 80)
    inputs = torch.randn(400, 80, generator=generator) * sizes
    moments = of_low_rank(inputs, 8)  # of 24 columns
    whole = inputs.T @ inputs
    values, vectors = torch.linalg.eigh(whole)
    best = vectors[:, -8:] * values[-8:] @ vectors[:, -8:].T
    lost = [
        float(torch.linalg.norm(whole - kept)) for kept in (best, moments.factor.T @ moments.factor)
    ]
    assert lost[1] < 1.2 * lost[0]
    torch.testing.assert_close(moments.diagonal, whole.diagonal())
    assert bool((moments.diagonal - moments.factor.square().sum(0) > -1e-3).all())


def test_full_moments_are_the_inputs_products():
    inputs, moments = rows(0), FullMoments.empty(6)
    for part in inputs.chunk(4):
        moments.update(part)
    torch.testing.assert_close(moments.matrix, inputs.T @ inputs)
    torch.testing.assert_close(moments.mean().matrix, inputs.T @ inputs / 20)


@given(seed=st.integers(0, 99), rank=st.integers(1, 6))
@few
def test_low_rank_moments_have_the_true_diagonal_and_exceed_no_direction(seed, rank):
    inputs = rows(seed)
    moments, true = of_low_rank(inputs, rank), inputs.T @ inputs
    torch.testing.assert_close(dense(moments).diagonal(), true.diagonal(), rtol=1e-4, atol=1e-3)
    left_out = torch.linalg.eigvalsh(true - moments.factor.T @ moments.factor)
    assert left_out.min() > -1e-3 * true.trace()
    assert len(moments.factor) <= rank


@given(seed=st.integers(0, 99), rank=st.integers(1, 6))
@few
def test_low_rank_moments_are_exact_where_the_rank_suffices(seed, rank):
    inputs = rows(seed, rank=rank)
    torch.testing.assert_close(
        dense(of_low_rank(inputs, rank)), inputs.T @ inputs, rtol=1e-3, atol=1e-2
    )


def test_a_rank_beyond_the_width_is_no_error_and_exact():
    inputs = rows(0)
    torch.testing.assert_close(dense(of_low_rank(inputs, 50)), inputs.T @ inputs)


def test_low_rank_moments_keep_the_largest_directions():
    inputs = torch.cat([torch.eye(4) * size for size in (1.0, 3.0)])[[0, 1, 6, 7]]
    assert of_low_rank(inputs, 2, parts=1).factor.square().sum(0).tolist() == [0, 0, 9, 9]


@pytest.mark.parametrize(
    "make", [lambda x: of_low_rank(x, 6), lambda x: FullMoments(x.T @ x, torch.tensor(len(x)))]
)
def test_sums_and_multiples_are_those_of_the_matrices(make):
    one, other = rows(0), rows(1)
    both = make(one).scaled(2.0).plus(make(other))
    found = dense(both) if isinstance(both, LowRankMoments) else both.matrix
    torch.testing.assert_close(found, 2 * one.T @ one + other.T @ other, rtol=1e-4, atol=1e-3)
    assert float(both.count) == 60


def test_rows_are_counted():
    counts = RowCounts.empty(5)
    counts.update(torch.tensor([4, 0, 4]))
    counts.update(torch.tensor([1]))
    assert counts.counts.tolist() == [1, 1, 0, 0, 2]
    assert counts.mean().plus(counts.mean()).counts.tolist() == [0.5, 0.5, 0, 0, 1]


@pytest.mark.parametrize("kind", ["full", "low rank", "rows"])
def test_what_a_checkpoint_holds_comes_back(kind, tmp_path):
    moments = {
        "full": FullMoments(torch.eye(3), torch.tensor(2.0)),
        "low rank": of_low_rank(rows(0), 2),
        "rows": RowCounts(torch.arange(3.0), torch.tensor(3.0)),
    }[kind]
    torch.save(moments.state_dict(), tmp_path / "state")
    back = moments_from(torch.load(tmp_path / "state", weights_only=True))
    assert type(back) is type(moments)
    assert back.width == moments.width
    for name, tensor in moments.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sums_are_float32_whatever_the_inputs_and_the_default_dtype(dtype):
    inputs, before = rows(0), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        full, low, counts = FullMoments.empty(6), LowRankMoments.empty(6, 2), RowCounts.empty(6)
    finally:
        torch.set_default_dtype(before)
    full.update(inputs.to(dtype))
    low.update(inputs.to(dtype))
    for tensor in (full.matrix, full.count, low.factor, low.diagonal, counts.counts):
        assert tensor.dtype is torch.float32


def test_no_input_and_inputs_that_are_not_finite_raise_nothing():
    empty = of_low_rank(torch.zeros(0, 6), 2, parts=1)
    assert float(empty.mean().diagonal.sum()) == 0
    broken = of_low_rank(torch.full((8, 6), torch.nan), 2)
    assert broken.diagonal.isnan().all()


def test_what_is_kept_of_few_inputs_is_none_of_them():
    inputs = torch.randn(4, 9)
    moments = LowRankMoments.empty(9, rank=6)
    moments.update(inputs)
    likeness = torch.cosine_similarity(moments.factor[:, None], inputs[None], dim=-1)
    assert likeness.abs().max() < 0.999
    torch.testing.assert_close(moments.factor.T @ moments.factor, inputs.T @ inputs)


@pytest.mark.parametrize("empty", [FullMoments.empty, lambda width: LowRankMoments.empty(width, 2)])
def test_moments_of_more_entries_are_those_of_inputs_with_zeros(empty):
    torch.manual_seed(0)
    rows = torch.randn(9, 4)
    moments, wider = empty(4), empty(6)
    moments.update(rows)
    wider.update(torch.nn.functional.pad(rows, (0, 2)))
    for name, tensor in wider.state_dict().items():
        found = moments.padded(6).state_dict()[name]
        pairs = (t.T @ t if name == "factor" else t for t in (found, tensor))
        torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("empty", [FullMoments.empty, lambda width: LowRankMoments.empty(width, 4)])
def test_moments_of_some_entries_are_those_of_inputs_without_the_others(empty):
    torch.manual_seed(0)
    rows, chosen = torch.randn(9, 4), torch.tensor([True, False, True, True])
    moments = empty(4)
    moments.update(rows)
    own = moments.of_inputs(chosen)
    expected = rows[:, chosen].T @ rows[:, chosen]
    found = own.matrix if isinstance(own, FullMoments) else own.factor.T @ own.factor
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own.diagonal, expected.diagonal())


@given(seed=st.integers(0, 99))
@few
def test_the_shrinkage_is_that_of_ledoit_and_wolf(seed):
    inputs = rows(seed, rank=3)
    for moments in (FullMoments.empty(6), LowRankMoments.empty(6, 6)):
        moments.noise = noise_of(moments, [moments.add_sample(row[None]) for row in inputs])
        torch.testing.assert_close(moments.diagonal, inputs.square().sum(0))
        theirs = ledoit_wolf_shrinkage(inputs, assume_centered=True)  # biased by (n − 1) / n
        assert moments.mean().shrinkage == pytest.approx(min(1.0, theirs * 20 / 19), rel=1e-3)


def test_the_noise_of_a_sketch_is_nearly_that_of_the_whole():
    inputs = torch.randn(400, 80, generator=torch.Generator().manual_seed(0))
    inputs *= torch.logspace(1, -1, 80)
    noises = []
    for moments in (FullMoments.empty(80), LowRankMoments.empty(80, 8)):
        noises.append(noise_of(moments, [moments.add_sample(part) for part in inputs.split(10)]))
    assert float(noises[1] / noises[0]) == pytest.approx(1.0, abs=0.3)


def test_one_sample_tells_nothing_and_who_does_not_ask_is_told_nothing():
    moments = FullMoments.empty(3)
    assert moments.shrinkage is None
    moments.noise = noise_of(moments, [moments.add_sample(torch.eye(3)[:1])])
    assert moments.shrinkage == 1.0


def test_noise_is_added_scaled_and_kept_as_the_moments_are():
    moments = FullMoments(torch.eye(3), torch.ones(()), torch.tensor(0.5))
    for kept in (moments, LowRankMoments.of(moments, 2)):
        twice = moments_from(kept.scaled(2.0).padded(4).state_dict())
        assert float(twice.noise) == 2.0
        assert float(twice.plus(twice).noise) == 4.0
        assert moments_from(twice.state_dict()).shrinkage == twice.shrinkage


@pytest.mark.parametrize("scale", [1e-16, 1e16])
def test_the_shrinkage_does_not_depend_on_how_large_the_inputs_are(scale):
    for moments in (FullMoments.empty(6), LowRankMoments.empty(6, 2)):
        moments.noise = noise_of(moments, [moments.add_sample(part) for part in rows(0).split(5)])
        large = moments.scaled(scale**2)
        assert large.shrinkage == pytest.approx(moments.shrinkage, rel=1e-4)
        assert bool(moments.noise.isfinite())
