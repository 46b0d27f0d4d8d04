import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recall_lightning.merging.folders.inputs import open_models, reference_of, tied_names
from recall_lightning.weights.reading import open_model
from tests.support.tiny_models import checkpoint, llama, saved, tensors


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return saved(llama(0), tmp_path_factory.mktemp("model") / "a")


def rewritten(path, folder, change):
    """Copy a model's folder, its tensors changed in place by a function."""
    shutil.copytree(path, folder)
    held = tensors(path)
    change(held)
    save_file(held, folder / "model.safetensors")
    return str(folder)


def refused(match, paths, donor=None):
    with pytest.raises(ValueError, match=match) as caught:
        open_models(paths, donor)
    assert "\n" not in str(caught.value)


def test_the_first_folder_gives_the_names(path, tmp_path):
    ckpt = checkpoint(llama(1), tmp_path / "a.ckpt", other=torch.ones(2))
    models = open_models([ckpt, path], None)
    assert [set(model) for model in models] == [set(tensors(path))] * 2
    assert reference_of(models).kind == "huggingface"


def test_a_donor_gives_the_names(path, tmp_path):
    ckpts = [checkpoint(llama(i), tmp_path / f"{i}.ckpt") for i in range(2)]
    assert set(open_models(ckpts, None)[0]) == {f"model.{name}" for name in tensors(path)}
    assert set(open_models(ckpts, path)[0]) == set(tensors(path))


@pytest.mark.parametrize("head_first", [False, True])
def test_second_names_of_tied_weights_are_dropped_for_a_donor(tmp_path, head_first):
    model = llama(0, tied=True)
    donor = saved(llama(1, tied=True), tmp_path / "donor")
    items = list(model.state_dict().items())
    state = {f"net.{name}": t for name, t in (items[::-1] if head_first else items)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    [aligned] = open_models([tmp_path / "a.ckpt"], donor)
    assert set(aligned) == set(tensors(donor))
    tied = {"net.lm_head.weight", "net.model.embed_tokens.weight"}
    found = tied_names(open_model(tmp_path / "a.ckpt"))
    assert {*found, *found.values()} == tied


def test_a_head_of_its_own_is_not_dropped_for_a_donor_that_ties_it(tmp_path):
    donor = saved(llama(1, tied=True), tmp_path / "donor")
    ckpt = checkpoint(llama(0), tmp_path / "a.ckpt")
    refused(r"a.ckpt does not fit .*donor: it also has 1 tensor \(lm_head.weight\)", [ckpt, donor])


def test_a_head_that_one_model_ties_and_another_does_not_is_called_so(path, tmp_path):
    tied = saved(llama(1, tied=True), tmp_path / "tied")
    refused(r"\(lm_head.weight\); tie_word_embeddings is True and not False", [path, tied])


def test_up_to_ten_missing_and_extra_tensors_are_listed(path, tmp_path):
    deeper = saved(llama(0, num_hidden_layers=4), tmp_path / "deeper")
    refused(r"deeper does not fit .*a: it also has 18 tensors \(.* and 8 more\)", [path, deeper])
    refused(r"a does not fit .*deeper: it lacks 18 tensors \(.* and 8 more\)", [deeper, path])
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        open_models([path, deeper], None)
    assert str(caught.value).count("model.layers.") == 10


def test_one_tensor_is_named_alone(path, tmp_path):
    bad = rewritten(path, tmp_path / "bad", lambda held: held.pop("model.norm.weight"))
    refused(r"bad does not fit .*: it lacks 1 tensor \(model.norm.weight\); only", [path, bad])


def test_vocabularies_that_differ_are_called_so(path, tmp_path):
    other = saved(llama(0, vocab_size=70), tmp_path / "other")
    refused(r"other has a vocabulary of 70 and .*a one of 64 .*resize_token", [path, other])


def test_other_shapes_are_not_called_a_vocabulary(path, tmp_path):
    wide = saved(llama(0, hidden_size=32), tmp_path / "wide")
    refused(r"wide does not fit .*'lm_head.weight' is \(64, 32\) and not \(64, 16\)", [path, wide])


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("embed.weight", [(4, 2), (4, 3)]),
        ("embed.weight", [(), (3,)]),
        ("position_embeddings.weight", [(4, 2), (5, 2)]),
    ],
)
def test_only_rows_of_embeddings_are_a_vocabulary(tmp_path, name, shapes):
    for i, shape in enumerate(shapes):
        save_file({name: torch.ones(shape)}, tmp_path / f"{i}.safetensors")
    refused("1.safetensors does not fit", [tmp_path / f"{i}.safetensors" for i in range(2)])


def test_quantised_models_are_refused(path, tmp_path):
    def quantise(held):
        held["model.norm.weight"] = held["model.norm.weight"].to(torch.int8)

    bad = rewritten(path, tmp_path / "bad", quantise)
    refused(r"bad holds 'model.norm.weight' as torch.int8 and .*quantised", [path, bad])
    shutil.copytree(path, tmp_path / "named")
    file = tmp_path / "named" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"a": 1}}))
    refused("named is quantised, as its config.json says", [tmp_path / "named"] * 2)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.int8, (2, 3)),  # bitsandbytes, compressed-tensors
        (torch.uint8, (6, 1)),  # two of 4 bits in one
        (torch.uint8, (6,)),
        (torch.int32, (2, 3)),  # GPTQ, AWQ
        (torch.bool, (2, 3)),
    ],
)
def test_codes_of_quantised_weights_are_told_by_what_they_are(tmp_path, dtype, shape):
    for i in range(2):
        codes = torch.arange(i, i + 6).view(shape) % 3
        held = {"l.weight": codes.to(dtype), "l.scales": torch.ones(1) + i}
        save_file(held, tmp_path / f"{i}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    refused(r"1.safetensors and .*0.safetensors differ in 'l.weight', torch.*quantised", paths)
    open_models([paths[0], paths[0]], None)


def test_counters_and_integers_that_are_the_same_are_no_codes(tmp_path):
    for i in range(2):
        held = {
            "w": torch.ones(2),
            "num_batches_tracked": torch.tensor(i),
            "seen": torch.tensor([i, i + 1]),
            "position_ids": torch.arange(6).view(1, 6),
        }
        save_file(held, tmp_path / f"{i}.safetensors")
    open_models([tmp_path / f"{i}.safetensors" for i in range(2)], None)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "SCB"])
def test_scales_beside_weights_are_not_averaged(tmp_path, name):
    for i in range(2):
        held = {"l.weight": torch.ones(2, 2), f"l.{name}": torch.ones(1) + i}
        save_file(held, tmp_path / f"{i}.safetensors")
    refused(
        f"'l.{name}', which belongs to quantised weights",
        [tmp_path / f"{i}.safetensors" for i in range(2)],
    )


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"text_config": {"quantization_config": {"bits": 4}}}),
        ("config.json", {"compression_config": {"bits": 4}}),
        ("quantize_config.json", {"bits": 4}),
    ],
)
def test_a_folder_that_says_it_is_quantised_is_believed(path, tmp_path, file, content):
    shutil.copytree(path, tmp_path / "named")
    (tmp_path / "named" / file).write_text(json.dumps(content))
    refused(f"named is quantised, as its {file} says", [tmp_path / "named", path])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_are_not_averaged_are_refused(path, tmp_path, dtype):
    def convert(held):
        held["model.norm.weight"] = held["model.norm.weight"].to(dtype)

    bad = rewritten(path, tmp_path / "bad", convert)
    refused(r"bad holds 'model.norm.weight' as torch\.\w+: convert", [bad, bad])


def test_broken_files_are_named(path, tmp_path):
    cut = Path(shutil.copytree(path, tmp_path / "cut"), "model.safetensors")
    cut.write_bytes(cut.read_bytes()[:-5])
    refused("cut/model.safetensors is no whole safetensors file", [path, cut.parent])
    cut.write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    refused("cut/model.safetensors is no whole safetensors file", [path, cut.parent])
    cut.rename(cut.with_name("pytorch_model.bin"))
    refused("cut holds weights only as pytorch_model.bin, which is refused", [path, cut.parent])
    refused("nowhere does not exist", [path, tmp_path / "nowhere"])


def test_a_config_that_is_no_json_is_named(path, tmp_path):
    shutil.copytree(path, tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text("{")
    refused("bad/config.json is no valid JSON", [path, tmp_path / "bad"])
