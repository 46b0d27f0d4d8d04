import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from recall_lightning.merging.folders import merge as merge_module
from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.merging.functional import METHODS, linear
from recall_lightning.merging.functional.sums import WeightedSums
from recall_lightning.weights.reading import open_model
from tests.support.tiny_models import bits_equal, checkpoint, llama, loaded, saved, tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models near a base, in fp32 and bf16, whole and in shards."""
    folder = tmp_path_factory.mktemp("models")
    base = llama(0)
    paths = {"base": saved(base, folder / "base")}
    for name in "abc":
        model = llama(ord(name), near=base)
        paths[name] = saved(model, folder / name)
        paths[f"{name}-shards"] = saved(model, folder / f"{name}-shards", shard_size=4000)
        paths[f"{name}-bf16"] = saved(model, folder / f"{name}-bf16", torch.bfloat16)
    return paths


def merged(out, paths, **settings):
    merge_files(MergeSettings(paths, str(out), **settings))
    return tensors(out)


def of(models, *names):
    return [models[name] for name in names]


def summed(paths, weights):
    """Σ wᵢθᵢ in float64, by plain torch."""
    opened = [tensors(path) for path in paths]
    return {
        name: sum(w * own[name].double() for own, w in zip(opened, weights, strict=True))
        for name in opened[0]
    }


@pytest.mark.parametrize("inputs", [("a", "b"), ("a-shards", "b"), ("a-bf16", "b-bf16")])
def test_the_output_loads_and_is_the_weighted_sum_rounded_once(models, tmp_path, inputs):
    paths = of(models, *inputs)
    found = merged(tmp_path / "out", paths, weights=[0.75, 0.25])
    dtype = next(iter(found.values())).dtype
    exact = summed(paths, [0.75, 0.25])
    assert found.keys() == exact.keys()
    for name, tensor in found.items():
        spacing = torch.nextafter(tensor.abs(), tensor.new_tensor(torch.inf)) - tensor.abs()
        assert tensor.dtype == dtype
        assert ((tensor.double() - exact[name]).abs() <= 0.5001 * spacing.double()).all()
    state = loaded(tmp_path / "out").state_dict()
    assert bits_equal(state, found)


def test_an_out_dtype_is_written_and_named_in_the_config(models, tmp_path):
    found = merged(tmp_path / "out", of(models, "a", "b"), out_dtype="bfloat16")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert loaded(tmp_path / "out").dtype == torch.bfloat16


def test_the_config_names_the_first_models_dtype_when_the_donor_has_another(models, tmp_path):
    paths = of(models, "a-bf16", "b")
    merged(tmp_path / "out", paths, donor=models["b"])
    assert loaded(tmp_path / "out").dtype == torch.bfloat16


def test_small_shards_are_written_with_an_index(models, tmp_path):
    whole = merged(tmp_path / "whole", of(models, "a", "b"))
    parts = merged(tmp_path / "parts", of(models, "a", "b"), shard_size=4000)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert bits_equal(whole, parts)
    assert bits_equal(loaded(tmp_path / "parts").state_dict(), whole)


@pytest.mark.parametrize(
    ("method", "options"),
    [("linear", {}), ("ties", {"density": 0.5}), ("dare", {"density": 0.5, "seed": 3})],
)
def test_a_merge_commutes_with_resharding(models, tmp_path, method, options):
    base = models["base"] if method != "linear" else None
    settings = {"method": method, "options": options, "weights": [0.7, 0.3], "base": base}
    whole = merged(tmp_path / "1", of(models, "a", "b"), **settings)
    parts = merged(tmp_path / "2", of(models, "a-shards", "b-shards"), shard_size=3000, **settings)
    assert bits_equal(whole, parts)


@pytest.mark.parametrize(
    ("method", "options"),
    [("linear", {}), ("dare", {"density": 0.5, "scale": 2.0}), ("ties", {"density": 0.5})],
)
@pytest.mark.parametrize("kind", ["", "-bf16"])
def test_models_may_be_given_in_any_order(models, tmp_path, method, options, kind):
    base = models["base"] if method != "linear" else None
    given = [("a", 0.1), ("b", 0.2), ("c", 0.6)]
    results = []
    for i, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 0, 2])):
        paths = [models[given[k][0] + kind] for k in order]
        weights = [given[k][1] for k in order]
        out = tmp_path / str(i)
        results.append(
            merged(out, paths, method=method, options=options, weights=weights, base=base)
        )
    assert bits_equal(results[0], results[1])
    assert bits_equal(results[0], results[2])


@pytest.mark.parametrize("kind", ["", "-bf16"])
def test_weights_one_and_zero_return_the_first_model(models, tmp_path, kind):
    found = merged(tmp_path / "out", of(models, f"a{kind}", f"b{kind}"), weights=[1, 0])
    assert bits_equal(found, tensors(models[f"a{kind}"]))


@pytest.mark.parametrize("weights", [None, [0.3, 0.3, 0.1], [[0.2, 0.9], 0.7, 0.4]])
@pytest.mark.parametrize("kind", ["", "-bf16"])
def test_identical_models_come_back_bit_for_bit(models, tmp_path, weights, kind):
    found = merged(tmp_path / "out", of(models, *[f"a{kind}"] * 3), weights=weights)
    assert bits_equal(found, tensors(models[f"a{kind}"]))


def statistics(paths, folder, method):
    """Random statistics in the form that a method takes, in a file a model."""
    files = []
    for i, path in enumerate(paths):
        generator = torch.Generator().manual_seed(i)
        kept = {}
        for name, tensor in tensors(path).items():
            if method == "fisher":
                kept[name] = torch.rand(tensor.shape, generator=generator)
            elif "proj" in name:
                inputs = torch.randn(50, tensor.shape[1], generator=generator)
                kept[name] = inputs.T @ inputs
            elif "embed" in name:
                kept[name] = torch.randint(0, 9, (len(tensor),), generator=generator)
        files.append(str(folder / f"statistics-{i}.safetensors"))
        save_file(kept, files[-1])
    return files


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("slerp", {"parallel_threshold": 0.9}),
        ("task_arithmetic", {"scale": 0.8}),
        ("ties", {"density": 0.4, "elect": "weighted_sum", "divide": "weights"}),
        ("dare", {"density": 0.4, "combine": "ties", "rescale": "l1"}),
        ("breadcrumbs", {"density": 0.6, "gamma": 0.1}),
        ("fisher", {}),
        ("regmean", {"ridge": 0.1}),
    ],
)
def test_every_method_writes_what_its_function_returns(models, tmp_path, method, options):
    paths, shares = of(models, "a", "b"), [0.75, 0.25]
    inputs = METHODS[method].inputs
    base = models["base"] if "base" in inputs else None
    files = statistics(paths, tmp_path, method) if {"importances", "moments"} & set(inputs) else []
    settings = {"options": options, "base": base, "statistics": files}
    found = merged(tmp_path / "out", paths, method=method, weights=shares, **settings)
    opened, origin = [tensors(path) for path in paths], tensors(models["base"])
    kept = [tensors(file) for file in files]
    for name, tensor in found.items():
        expected = []
        for order in ([0, 1], [1, 0]):  # sums in float32 depend on it
            own = [opened[i][name] for i in order]
            given = {
                "weights": [shares[i] for i in order],
                "base": origin[name],
                "name": name,
                "model_keys": [merge_module._digest(t) for t in own],
            }
            seen = [kept[i][name].float() for i in order if kept and name in kept[i]]
            given["importances"] = given["moments"] = seen
            if method == "regmean" and not seen:
                expected.append(linear(own, given["weights"]))
            else:
                function = METHODS[method].function
                expected.append(function(own, *(given[key] for key in inputs), **options))
        assert any(torch.equal(tensor, candidate) for candidate in expected), name


def test_biases_without_moments_are_averaged_and_maps_are_not(models, tmp_path):
    paths = of(models, "a", "b")
    files = statistics(paths, tmp_path, "regmean")
    found = merged(tmp_path / "1", paths, method="regmean", statistics=files)
    mean = merged(tmp_path / "2", paths)
    assert torch.equal(found["model.norm.weight"], mean["model.norm.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(found[name], mean[name])


def test_weights_over_depth_reach_their_blocks_and_are_recorded(models, tmp_path):
    paths = of(models, "a", "b")
    found = merged(tmp_path / "out", paths, weights=[[1, 0.25], {"*.mlp.*": 0.0, "*": [0, 0.75]}])
    first, second = (tensors(path) for path in paths)
    for name, shares in {
        "model.embed_tokens.weight": (1, 0),
        "model.layers.0.mlp.up_proj.weight": (1, 0),
        "model.layers.1.mlp.up_proj.weight": (1, 0),
        "model.layers.1.self_attn.q_proj.weight": (0.25, 0.75),
        "lm_head.weight": (0.25, 0.75),
    }.items():
        expected = shares[0] * first[name].double() + shares[1] * second[name].double()
        assert torch.equal(found[name], expected.float()), name
    recorded = json.loads((tmp_path / "out" / "coefficients.json").read_text())["blocks"]
    assert [block["name"] for block in recorded] == ["model.layers.0", "model.layers.1"]
    assert recorded[0]["weights"] == [1, 0]
    weighted = 16 * 24 * 3  # the mlp's, which is all the first model's
    total = sum(t.numel() for n, t in found.items() if "layers.1." in n or "norm." in n[:11])
    total += found["lm_head.weight"].numel()
    assert recorded[1]["parameters"] == total
    assert recorded[1]["weights"][0] == pytest.approx(
        (weighted + 0.25 * (total - weighted)) / total
    )


def test_options_may_differ_by_block(models, tmp_path):
    paths = of(models, "a", "b")
    common = {"method": "ties", "base": models["base"]}
    options = {"density": {"*.0.*": 0.2, "*": 0.9}}
    mixed = merged(tmp_path / "mixed", paths, options=options, **common)
    sparse = merged(tmp_path / "sparse", paths, options={"density": 0.2}, **common)
    dense = merged(tmp_path / "dense", paths, options={"density": 0.9}, **common)
    for name, tensor in mixed.items():
        assert torch.equal(tensor, (sparse if ".0." in name else dense)[name])


def test_tied_weights_stay_tied(tmp_path):
    paths = [saved(llama(i, tied=True), tmp_path / str(i)) for i in range(2)]
    found = merged(tmp_path / "out", paths)
    assert "lm_head.weight" not in found
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_checkpoints_take_the_donors_names_and_ties(tmp_path):
    networks = [llama(i, tied=True) for i in range(2)]
    ckpt = checkpoint(networks[0], tmp_path / "a.ckpt", **{"metric.count": torch.tensor(3)})
    paths = [ckpt, saved(networks[1], tmp_path / "b")]
    found = merged(tmp_path / "out", paths, weights=[0.75, 0.25])
    plain = [saved(networks[0], tmp_path / "a"), paths[1]]
    assert bits_equal(found, merged(tmp_path / "plain", plain, weights=[0.75, 0.25]))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    loaded(tmp_path / "out")


def test_task_vectors_of_checkpoints_are_differences_from_a_folder(tmp_path):
    networks = [llama(i, tied=True) for i in range(2)]
    ckpts = [checkpoint(n, tmp_path / f"{i}.ckpt") for i, n in enumerate(networks)]
    base = saved(llama(9, tied=True), tmp_path / "base")
    found = merged(tmp_path / "out", ckpts, method="task_arithmetic", base=base, weights=[1, 0])
    expected = networks[0].state_dict()
    assert set(found) == set(expected) - {"lm_head.weight"}
    assert all(torch.allclose(t, expected[n], atol=1e-6) for n, t in found.items())


@pytest.mark.parametrize("method", ["linear", "dare"])
def test_tied_weights_of_checkpoints_alone_get_one_value(tmp_path, method):
    ckpts = [checkpoint(llama(i, tied=True), tmp_path / f"{i}.ckpt") for i in range(2)]
    settings = {} if method == "linear" else {"base": ckpts[0], "options": {"density": 0.5}}
    found = merged(tmp_path / "out", ckpts, method=method, weights=[[0.9, 0.1], 0.5], **settings)
    head, rows = found["model.lm_head.weight"], found["model.model.embed_tokens.weight"]
    assert torch.equal(head, rows)


def test_a_head_stored_beside_the_embeddings_it_is_tied_to_is_dropped(tmp_path):
    model = llama(0, tied=True)
    paths = [saved(model, tmp_path / str(i)) for i in range(2)]
    rows = tensors(paths[0])
    extra = {"lm_head.weight": rows["model.embed_tokens.weight"].clone()}
    save_file(rows | extra, tmp_path / "0" / "model.safetensors")
    assert bits_equal(merged(tmp_path / "out", paths), tensors(paths[1]))


def test_integers_and_truth_values_are_copied(tmp_path):
    for i in range(2):
        kept = {
            "count": torch.tensor(10 + i),
            "mask": torch.tensor([i == 0, True]),
            "w": torch.full((3,), float(i)),
        }
        save_file(kept, tmp_path / f"{i}.safetensors")
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    found = merged(tmp_path / "out", paths, out_dtype="bfloat16")
    assert found["count"] == 10
    assert found["count"].dtype == torch.int64
    assert found["mask"].tolist() == [True, True]
    assert found["w"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare", "fisher"])
def test_scalars_and_empty_tensors_are_merged(tmp_path, method):
    held = {"empty": torch.ones(0, 3), "scalar": torch.tensor(2.0), "one": torch.ones(1)}
    save_file(held, tmp_path / "a.safetensors")
    path = str(tmp_path / "a.safetensors")
    inputs = METHODS[method].inputs
    settings = {"base": path if "base" in inputs else None}
    settings["statistics"] = [path] * 2 if "importances" in inputs else []
    settings["options"] = {"density": 0.1} if "base" in inputs else {}
    found = merged(tmp_path / "out", [path] * 2, method=method, **settings)
    assert bits_equal(found, held)


def test_dare_drops_entries_of_each_model_apart_where_only_their_ends_differ(tmp_path):
    for i in range(2):
        kept = torch.zeros(9000)
        kept[:6000] = 1  # alike
        kept[6000:] = i + 2
        save_file({"w": kept}, tmp_path / f"{i}.safetensors")
    save_file({"w": torch.zeros(9000)}, tmp_path / "base.safetensors")
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    base = str(tmp_path / "base.safetensors")
    found = merged(tmp_path / "out", paths, method="dare", base=base, options={"density": 0.5})
    assert set(found["w"][:6000].tolist()) == {0, 2, 4}  # none, one or both kept


def test_linear_is_computed_from_mapped_tensors_in_chunks(models, tmp_path, monkeypatch):
    fed, chunks = [], WeightedSums.chunks
    paths = of(models, "a", "b")

    def spy(self, given, weights):
        fed.extend(given)
        return chunks(self, given, weights)

    monkeypatch.setattr(WeightedSums, "chunks", spy)
    monkeypatch.setattr(merge_module._ModelMerge, "_merge", None)
    merged(tmp_path / "out", paths)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith("model.safetensors")]
    spans = [(int(low, 16), int(high, 16)) for low, high in ranges]
    assert len(fed) == 2 * len(tensors(paths[0]))
    assert all(any(low <= t.data_ptr() < high for low, high in spans) for t in fed)


def test_progress_adds_up_to_the_bytes_of_all_models(models, tmp_path):
    paths, told = of(models, "a", "b"), []
    report = merge_files(
        MergeSettings(paths, str(tmp_path / "out")), lambda done, all_: told.append((done, all_))
    )
    assert {total for _, total in told} == {sum(done for done, _ in told)}
    assert told[0][1] == 2 * open_model(paths[0]).nbytes
    assert report.nbytes >= open_model(tmp_path / "out").nbytes


# what is wrong: one sentence, and nothing is left


def refused(tmp_path, match, paths, **settings):
    before = sorted(os.listdir(tmp_path))
    out = tmp_path / "deep" / "out"
    with pytest.raises(ValueError, match=match) as caught:
        merge_files(MergeSettings(paths, str(out), **settings))
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def changed(path, folder, change):
    """Copy a model, with its tensors changed."""
    shutil.copytree(path, folder)
    save_file(change(tensors(path)), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_nan_is_named_with_its_file_and_tensor(models, tmp_path):
    def break_one(held):
        held["model.norm.weight"][3] = torch.nan
        return held

    bad = changed(models["b"], tmp_path / "bad", break_one)
    match = r"bad holds NaN or infinite values in 'model.norm.weight'"
    refused(tmp_path, match, [models["a"], bad])
    common = {"base": models["base"], "options": {"density": 0.5}}
    refused(tmp_path, match, [models["a"], bad], method="ties", **common)
    refused(tmp_path, match, of(models, "a", "b"), method="dare", **common | {"base": bad})


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_what_float16_cannot_hold_is_refused(models, tmp_path, method):
    big = changed(models["a"], tmp_path / "big", lambda held: {n: t + 1e6 for n, t in held.items()})
    base = None if method == "linear" else models["base"]
    match = r"exceeds torch.float16: choose a wider out_dtype"
    refused(tmp_path, match, [big, big], method=method, base=base, out_dtype="float16")


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_a_full_disk_is_named(models, tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    refused(tmp_path, "out was not made because the disk is full", of(models, "a", "b"))


def test_a_broken_disk_is_named(models, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    refused(tmp_path, r"out cannot be read or written \(Input/output error\)", of(models, "a", "b"))


def test_an_output_that_exists_is_left_alone(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ValueError, match="out exists already"):
        merge_files(MergeSettings(of(models, "a", "b"), str(tmp_path / "out")))
    assert os.listdir(tmp_path / "out") == ["mine"]


@pytest.mark.parametrize("device", ["cuda:7", "meta", "nonsense", ""])
def test_a_device_that_cannot_compute_is_refused(models, tmp_path, device):
    refused(tmp_path, "cannot be used", of(models, "a", "b"), device=device)


def test_a_scale_beyond_all_numbers_is_refused(models, tmp_path):
    settings = {"method": "task_arithmetic", "base": models["base"], "options": {"scale": 10**40}}
    refused(tmp_path, "exceeds torch.float32", of(models, "a", "b"), **settings)


def test_weights_that_cancel_cannot_be_normalised(models, tmp_path):
    paths = of(models, "a", "b", "c")
    refused(tmp_path, "sum to 0", paths, weights=[0.1, 0.2, -0.3])
    merged(tmp_path / "out", paths, weights=[0.1, 0.2, -0.3], options={"normalize": False})


def test_patterns_that_miss_are_named_with_their_setting(models, tmp_path):
    paths = of(models, "a", "b")
    refused(tmp_path, r"weights\[1\]: the weight .* matches none", paths, weights=[1, {"x": 1}])
    settings = {"method": "ties", "base": models["base"], "options": {"density": {"y*": 0.1}}}
    refused(tmp_path, "density: the weight .* matches none", paths, **settings)


def test_an_option_outside_its_range_names_the_method_and_the_tensor(models, tmp_path):
    settings = {"method": "ties", "base": models["base"], "options": {"density": 2.0}}
    refused(tmp_path, r"ties of 'lm_head.weight': density=2.0", of(models, "a", "b"), **settings)


def test_statistics_that_do_not_fit_are_refused(models, tmp_path):
    paths = of(models, "a", "b")
    files = statistics(paths, tmp_path, "regmean")
    refused(tmp_path, "has no statistics of 'lm", paths, method="fisher", statistics=files)
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    other = [files[0], str(tmp_path / "x.safetensors")]
    refused(tmp_path, "statistics of no weight", paths, method="regmean", statistics=other)
    fewer = {n: t for n, t in tensors(files[1]).items() if "down" not in n}
    save_file(fewer, tmp_path / "x.safetensors")
    match = r"x.safetensors has no statistics of .*down_proj"
    refused(tmp_path, match, paths, method="regmean", statistics=other)
    refused(tmp_path, match, paths, method="regmean", statistics=other[::-1])


def test_measured_blocks_that_no_tensor_is_named_after_are_refused(models):
    blocks = ["encoder.0", "encoder.1"]
    model = open_model(models["a"])
    shapes = {name: model.shape(name) for name in model}
    with pytest.raises(ValueError, match=r"no tensor of .*a is named after .* encoder.0 to enc"):
        merge_module._blocks(shapes, blocks, model)


def test_a_rank_is_refused_where_nothing_has_one(models, tmp_path):
    refused(tmp_path, "rank is for adapters", of(models, "a", "b"), rank=4)


def test_the_settings_written_beside_the_weights_make_the_same_merge(models, tmp_path):
    settings = {"weights": [[0.9, 0.1], 0.4], "options": {"normalize": False}}
    found = merged(tmp_path / "out", of(models, "a", "b"), **settings)
    written = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    merge_files(MergeSettings.from_flat(written | {"out": str(tmp_path / "again")}))
    assert bits_equal(tensors(tmp_path / "again"), found)
