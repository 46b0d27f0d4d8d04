"""Running statistics of normalisation layers in models on disk."""

import time

import pytest
import torch
from safetensors.torch import save_file

from recall_lightning.merging.folders import writing
from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.merging.functional import sums
from tests.support.tiny_models import bits_equal, tensors

MEAN, VARIANCE = "norm.running_mean", "norm.running_var"
COUNTS = (300, 100, 200)
CHANNELS = 500


def activations():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(CHANNELS, generator=generator)
        + torch.randn(count, CHANNELS, generator=generator)
        for count in COUNTS
    ]


def described(seen):
    return {MEAN: seen.mean(0), VARIANCE: seen.var(0, correction=0)}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def paths(request, tmp_path):
    """Return a file a model, which holds the statistics of what its layer has seen."""
    files = [str(tmp_path / f"{i}.safetensors") for i in range(len(COUNTS))]
    for file, seen in zip(files, activations(), strict=True):
        save_file({n: t.to(request.param) for n, t in described(seen).items()}, file)
    return files


def merged(out, paths, **settings):
    merge_files(MergeSettings(paths, str(out), **settings))
    return tensors(out)


def test_merged_statistics_are_those_of_all_activations_together(paths, tmp_path):
    found = merged(tmp_path / "out", paths, weights=COUNTS)
    half = found[MEAN].dtype == torch.bfloat16
    rounding = {"rtol": 0.02, "atol": 0.02} if half else {"rtol": 1e-5, "atol": 1e-5}
    for name, expected in described(torch.cat(activations())).items():
        torch.testing.assert_close(found[name].float(), expected, **rounding)


def test_a_layer_of_many_chunks_is_the_same_however_slow_the_disk(paths, tmp_path, monkeypatch):
    def slowly(*given):
        time.sleep(0.05)  # what is written meanwhile must not be computed over
        return write_all(*given)

    whole = merged(tmp_path / "whole", paths)
    write_all = writing.write_all
    monkeypatch.setattr(writing, "write_all", slowly)
    monkeypatch.setattr(sums, "chunk_size", lambda device: 32)
    assert bits_equal(merged(tmp_path / "parts", paths), whole)


def test_models_may_be_given_in_any_order(paths, tmp_path):
    orders = ([0, 1, 2], [2, 0, 1], [1, 0, 2])
    first, *others = (
        merged(
            tmp_path / "".join(map(str, order)),
            [paths[i] for i in order],
            weights=[COUNTS[i] for i in order],
        )
        for order in orders
    )
    assert all(bits_equal(first, other) for other in others)


def test_weights_one_and_zero_return_a_model_bit_for_bit(paths, tmp_path):
    assert bits_equal(merged(tmp_path / "out", paths, weights=[0, 1, 0]), tensors(paths[1]))


@pytest.mark.parametrize("weights", [[0.5, 1.0, 0.5], [1.5, -0.25, -0.25]])
def test_weights_that_are_no_parts_of_1_sum_as_they_do_otherwise(paths, tmp_path, weights):
    found = merged(tmp_path / "out", paths, weights=weights, options={"normalize": False})
    opened = [tensors(path)[VARIANCE].double() for path in paths]
    expected = sum(w * own for w, own in zip(weights, opened, strict=True))
    torch.testing.assert_close(found[VARIANCE], expected.to(found[VARIANCE].dtype))


@pytest.mark.parametrize(
    ("mean", "message"), [(torch.nan, r"0\.safetensors holds NaN .*mean'"), (9e19, "exceeds")]
)
def test_a_variance_that_would_not_be_finite_is_refused(paths, tmp_path, mean, message):
    own = tensors(paths[0])
    save_file({VARIANCE: own[VARIANCE], MEAN: torch.full_like(own[MEAN], mean)}, paths[0])
    with pytest.raises(ValueError, match=message):
        merged(tmp_path / "out", paths)
    assert not (tmp_path / "out").exists()


def test_statistics_of_any_shape_are_mixed(tmp_path):
    files = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for number, file in enumerate(files):
        mean = torch.full((3, 2, 2), float(number))
        save_file({MEAN: mean, VARIANCE: torch.ones(3, 2, 2)}, file)
    merge_files(MergeSettings(files, tmp_path / "merged", weights=[0.5, 0.5]))
    merged = tensors(tmp_path / "merged")
    assert torch.equal(merged[VARIANCE], torch.full((3, 2, 2), 1.25))
