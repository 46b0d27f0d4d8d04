import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recall_lightning.weights.reading import open_model
from recall_lightning.weights.safetensors_layout import SAFETENSORS_DTYPES

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def same(model, tensors):
    return model.keys() == tensors.keys() and all(
        torch.equal(model[name], tensor) for name, tensor in tensors.items()
    )


def save_sharded(folder, shards, weight_map=None):
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard)
    listed = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map or listed}))


def anonymous_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def test_a_hugging_face_folder_of_one_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    model = open_model(str(tmp_path))
    assert same(model, TENSORS)
    assert (model.kind, model.path, model.folder) == ("huggingface", tmp_path, tmp_path)
    assert model.config == {"hidden_size": 3}
    assert model.adapter_config is None


def test_shards_that_transformers_wrote(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32, num_attention_heads=2))
    llama.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model = open_model(tmp_path)
    assert same(model, llama.state_dict())
    assert model.config["hidden_size"] == 16


def test_an_adapter_folder(tmp_path):
    save_file(TENSORS, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    model = open_model(tmp_path)
    assert same(model, TENSORS)
    assert (model.kind, model.adapter_config, model.config) == ("adapter", {"r": 2}, None)


def test_one_safetensors_file(tmp_path):
    save_file(TENSORS, tmp_path / "any.safetensors")
    model = open_model(tmp_path / "any.safetensors")
    assert same(model, TENSORS)
    assert (model.kind, model.folder) == ("safetensors", None)


def test_a_lightning_checkpoint_gives_the_tensors_of_its_state_dict(tmp_path):
    weights = TENSORS | {"p": nn.Parameter(torch.ones(2)), "extra": {"epoch": 1}}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "last.ckpt")
    model = open_model(tmp_path / "last.ckpt")
    assert same(model, TENSORS | {"p": torch.ones(2)})
    assert (model.kind, model.folder) == ("lightning", None)
    assert not model["p"].requires_grad


def test_shapes_dtypes_and_bytes_come_from_the_header(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    model = open_model(tmp_path / "x.safetensors")
    assert model.shape("a") == (2, 3)
    assert model.dtype("b") is torch.bfloat16
    assert model.nbytes == 6 * 4 + 4 * 2


def test_the_order_is_that_of_the_files(tmp_path):
    first = {"b": torch.ones(1), "c": torch.ones(1, dtype=torch.int64)}  # wide dtypes lie first
    save_sharded(tmp_path, {"2": {"a": torch.ones(1)}, "1": first})
    assert list(open_model(tmp_path)) == ["c", "b", "a"]


def test_no_dtype_stands_for_another():
    assert len(set(SAFETENSORS_DTYPES.values())) == len(SAFETENSORS_DTYPES) >= 18


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES.values(), ids=str)
def test_every_dtype_survives(tmp_path, dtype):
    bits = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0], dtype=torch.uint8)
    save_file({"w": bits.view(dtype)}, tmp_path / "x.safetensors")
    model = open_model(tmp_path / "x.safetensors")
    assert model.dtype("w") is model["w"].dtype is dtype
    assert torch.equal(model["w"].view(torch.uint8), bits)


def test_an_empty_tensor_and_a_scalar(tmp_path):
    tensors = {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert same(open_model(tmp_path / "x.safetensors"), tensors)


def test_tensors_that_the_index_does_not_list_are_taken_too(tmp_path):
    save_sharded(tmp_path, {"s": TENSORS}, {"a": "s"})
    assert same(open_model(tmp_path), TENSORS)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_reading_costs_no_anonymous_memory_and_writing_stays_out_of_the_file(tmp_path, name):
    path = tmp_path / name
    tensor = torch.ones(8 << 20)
    if path.suffix == ".ckpt":
        torch.save({"state_dict": {"w": tensor}}, path)
    else:
        save_file({"w": tensor}, path)
    del tensor
    before = anonymous_mib()
    read = open_model(path)["w"]
    assert read.sum() == 8 << 20
    assert anonymous_mib() - before < 4
    read[0] = 7
    assert open_model(path)["w"][0] == 1


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_with_the_reason(tmp_path, name):
    torch.save(TENSORS, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name}.*unpickling runs code.*save_pretrained"):
            open_model(path)


def test_a_missing_path_an_empty_folder_and_another_file(tmp_path):
    with pytest.raises(ValueError, match="absent does not exist"):
        open_model(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors"):
        open_model(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"model\.onnx is no model file"):
        open_model(tmp_path / "model.onnx")


def test_an_index_that_names_a_missing_shard(tmp_path):
    save_sharded(tmp_path, {"s1": {"a": TENSORS["a"]}}, {"a": "s1", "b": "s2"})
    with pytest.raises(ValueError, match=r"index\.json names the shard s2, which is missing"):
        open_model(tmp_path)


def test_a_tensor_that_its_shard_lacks(tmp_path):
    shards = {"s1": {"a": TENSORS["a"]}, "s2": {"b": TENSORS["b"]}}
    save_sharded(tmp_path, shards, {"a": "s2", "b": "s2", "c": "s1"})
    with pytest.raises(ValueError, match="s2 lacks the tensor 'a' that"):
        open_model(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    save_sharded(tmp_path, {"s1": TENSORS, "s2": {"b": TENSORS["b"]}})
    with pytest.raises(ValueError, match="'b' twice, in s1 and in s2"):
        open_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"index\.json (is no valid JSON|holds no|has no weight_map)"
    ):
        open_model(tmp_path)


def test_a_broken_config_is_named(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no valid JSON"):
        open_model(tmp_path)


def test_a_file_cut_anywhere_or_with_bytes_too_many_is_refused_at_opening(tmp_path):
    save_file(TENSORS, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    for broken in (*(whole[:size] for size in range(0, len(whole), 5)), whole[:-1], whole + b"0"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"x\.safetensors is no whole safetensors file"):
            open_model(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: (1 << 40).to_bytes(8, "little") + whole[8:],
        lambda whole: whole.replace(b"{", b"x", 1),
        lambda whole: whole.replace(b"[2,3]", b"[2,4]"),
        lambda whole: whole.replace(b'"F32"', b'"F33"'),
    ],
    ids=["header length", "not JSON", "shape", "dtype"],
)
def test_a_corrupt_header_is_refused_at_opening(tmp_path, damage):
    save_sharded(tmp_path, {"s1": {"x": torch.ones(1)}, "s2": TENSORS})
    shard = tmp_path / "s2"
    damaged = damage(shard.read_bytes())
    assert damaged != shard.read_bytes()
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match="s2 is no whole safetensors file"):
        open_model(tmp_path)


def test_a_dtype_that_torch_has_no_tensor_for(tmp_path):
    header = b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(ValueError, match=r"x\.safetensors holds 'w' as F4: convert .*bfloat16"):
        open_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": TENSORS}, "has no state_dict"),
        ([1], "has no state_dict"),
        ({"state_dict": {}}, "holds no tensor"),
        ({"state_dict": {"w": torch.eye(2).to_sparse()}}, "sparse_coo: save it"),
        ({"state_dict": {"w": torch.ones(2, dtype=torch.complex128)}}, "complex128: convert it"),
    ],
)
def test_a_checkpoint_without_usable_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=rf"x\.ckpt {message}|x\.ckpt holds 'w' as .*{message}"):
        open_model(tmp_path / "x.ckpt")


class Foreign:
    pass


def test_an_unreadable_checkpoint(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "hyper_parameters": Foreign()}, path)
    with pytest.raises(ValueError, match=r"x\.ckpt cannot be read as tensors and plain Python"):
        open_model(path)
    torch.save({"state_dict": TENSORS}, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"x\.ckpt cannot be read as tensors and plain Python"):
        open_model(path)


# a file is what its content says, whatever it is called


@pytest.mark.parametrize("name", ["x.ckpt", "x.bin", "x.pt", "x"])
def test_a_safetensors_file_is_read_under_any_name(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    assert open_model(tmp_path / name).kind == "safetensors"
    assert same(open_model(tmp_path / name), TENSORS)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_is_read_under_any_name(tmp_path, name, zipped):
    held = {"state_dict": TENSORS, "epoch": 3}
    torch.save(held, tmp_path / name, _use_new_zipfile_serialization=zipped)
    model = open_model(tmp_path / name)
    assert model.kind == "lightning"
    assert same(model, TENSORS)
    assert model.beside == {"epoch": 3}


def test_pickled_tensors_under_the_name_of_a_safetensors_file_are_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match=r"model\.safetensors .*pickled.*save_pretrained"):
            open_model(path)


def test_a_folder_whose_weights_have_another_name_is_told_so(tmp_path):
    save_file(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, which is a safetensors file"):
        open_model(tmp_path)
    save_file(TENSORS, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"holds an adapter without adapter_config\.json"):
        open_model(tmp_path)


# names that are read are names of files in the folder


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/etc/passwd", "sub/s1", r"sub\s1", "..", ".", "", "s\0", 3]
)
def test_an_index_names_files_in_its_folder_alone(tmp_path, shard):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "other.safetensors", folder / "sub" / "s1"):
        save_file({"a": torch.ones(1)}, file)
    save_sharded(folder, {}, {"a": shard})
    with pytest.raises(ValueError, match=r"index\.json names the file .* no bare file name"):
        open_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "s1"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    if name == "s1":
        save_sharded(folder, {name: TENSORS})
    else:
        save_file(TENSORS, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{name} is a link to .*elsewhere, outside"):
        open_model(folder)


def test_links_inside_the_folder_to_it_and_to_the_blobs_of_the_hub_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "a1b2", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file(TENSORS, blobs / "c3d4")
    (snapshot / "model.safetensors").symlink_to("../../blobs/c3d4")
    (blobs / "e5f6").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/e5f6")
    (tmp_path / "link").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "link"):
        assert same(open_model(path), TENSORS)
        assert open_model(path).config == {"a": 1}
    save_file(TENSORS, snapshot / "renamed")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("renamed")
    assert same(open_model(snapshot), TENSORS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_key_that_is_there_twice_is_refused(tmp_path, name):
    save_sharded(tmp_path, {"s1": {"a": torch.ones(1)}, "s2": {"b": torch.ones(1)}})
    (tmp_path / name).write_text('{"weight_map": {"a": "s1", "b": "s2", "a": "s1"}}')
    with pytest.raises(ValueError, match=f"{name} is no valid JSON .*key 'a' twice"):
        open_model(tmp_path)
