import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.measuring.moments import LowRankMoments
from tests.support.moments import dense, of_low_rank, rows

few = settings(max_examples=15, deadline=None)


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


def test_what_is_kept_of_few_inputs_is_none_of_them():
    inputs = torch.randn(4, 9)
    moments = LowRankMoments.empty(9, rank=6)
    moments.update(inputs)
    likeness = torch.cosine_similarity(moments.factor[:, None], inputs[None], dim=-1)
    assert likeness.abs().max() < 0.999
    torch.testing.assert_close(moments.factor.T @ moments.factor, inputs.T @ inputs)
