import errno
import json
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from recall_lightning.merging.folders.writing import ModelWriter, companion_files
from recall_lightning.weights.reading import open_model
from recall_lightning.weights.safetensors_layout import SAFETENSORS_DTYPES

TENSORS = {f"w{i}": torch.arange(float(i), i + 8).view(2, 4) for i in range(4)}


def plan_of(tensors):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_all(out, tensors, **options):
    with ModelWriter(out, plan_of(tensors), **options) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def same(model, tensors):
    return model.keys() == tensors.keys() and all(
        model[name].dtype == tensor.dtype and torch.equal(bits(model[name]), bits(tensor))
        for name, tensor in tensors.items()
    )


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@st.composite
def state_dicts(draw):
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    kinds = st.sampled_from(list(SAFETENSORS_DTYPES.values()))
    names = st.text('ab."\\é\n', min_size=1, max_size=4)
    chosen = draw(st.dictionaries(names, st.tuples(kinds, shapes), min_size=1, max_size=6))
    return {
        name: torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8)
        .view(dtype)
        .reshape(shape)
        for name, (dtype, shape) in chosen.items()
    }


@settings(deadline=None, max_examples=60)
@given(state_dicts(), st.data())
def test_any_order_and_any_cut_of_the_pieces_give_the_tensors(tmp_path_factory, tensors, data):
    out = tmp_path_factory.mktemp("any") / "out"
    limit = data.draw(st.integers(1, 300))
    with ModelWriter(out, plan_of(tensors), shard_size=limit) as writer:
        for name in data.draw(st.permutations(list(tensors))):
            piece = data.draw(st.integers(1, 9))
            writer.write(name, iter(tensors[name].reshape(-1).split(piece)))
    assert same(open_model(out), tensors)
    for file in out.glob("*.safetensors"):
        held = load_file(file).values()
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held) <= limit


@settings(deadline=None, max_examples=60)
@given(state_dicts())
def test_one_file_is_byte_for_byte_what_safetensors_writes(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("one")
    write_all(folder / "out", tensors)
    save_file(tensors, folder / "expected", metadata={"format": "pt"})
    assert os.listdir(folder / "out") == ["model.safetensors"]
    assert (folder / "out" / "model.safetensors").read_bytes() == (folder / "expected").read_bytes()


def tiny_llama():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32, num_attention_heads=2))


def test_shards_and_index_are_what_save_pretrained_writes_and_from_pretrained_reads(tmp_path):
    llama = tiny_llama()
    llama.save_pretrained(tmp_path / "theirs", max_shard_size="6KB")
    with ModelWriter(tmp_path / "ours", plan_of(llama.state_dict()), shard_size="6KB") as writer:
        for name, tensor in llama.state_dict().items():
            writer.write(name, tensor)
        for file in companion_files(tmp_path / "theirs"):
            writer.copy_file(file)
    files = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(files) > 6
    for name in files:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert same(loaded.state_dict(), llama.state_dict())


def test_an_adapter_and_metadata(tmp_path):
    write_all(tmp_path / "out", TENSORS, file_stem="adapter_model", metadata={"merge": "linear"})
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "merge": "linear"}
    write_all(tmp_path / "cut", TENSORS, file_stem="adapter_model", shard_size=64)
    index = json.loads((tmp_path / "cut" / "adapter_model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 32, "total_size": 128}
    assert index["weight_map"]["w3"] == "adapter_model-00002-of-00002.safetensors"


def test_nbytes_is_the_size_of_the_weight_files(tmp_path):
    writer = ModelWriter(tmp_path / "out", plan_of(TENSORS), shard_size=64)
    write_all(tmp_path / "out", TENSORS, shard_size=64)
    files = (tmp_path / "out").glob("*.safetensors")
    assert writer.nbytes == sum(file.stat().st_size for file in files)


def test_tensors_with_gradient_and_out_of_order_memory_are_written(tmp_path):
    tensors = {"w": torch.arange(6.0).view(2, 3).t().requires_grad_()}
    write_all(tmp_path / "out", tensors)
    assert same(open_model(tmp_path / "out"), {"w": tensors["w"].detach()})


def test_small_files_and_copies_come_along(tmp_path):
    (tmp_path / "source.py").write_text("code")
    with ModelWriter(tmp_path / "out", plan_of(TENSORS)) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
        writer.write_file("README.md", "é")
        writer.write_file("sub/raw", b"\xff")
        writer.copy_file(tmp_path / "source.py")
        writer.copy_file(tmp_path / "source.py", "sub/copy.py")
    assert (tmp_path / "out" / "README.md").read_bytes() == "é".encode()
    assert (tmp_path / "out" / "sub" / "raw").read_bytes() == b"\xff"
    assert (tmp_path / "out" / "source.py").read_text() == "code"
    assert (tmp_path / "out" / "sub" / "copy.py").read_text() == "code"


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda writer: None, "2 of its tensors were not written, 'w0' first"),
        (lambda writer: writer.write("x", torch.ones(1)), "'x' is not in the plan"),
        (lambda writer: writer.write("w0", TENSORS["w0"].half()), "float32, not torch.float16"),
        (lambda writer: writer.write("w0", torch.ones(4, 2)), r"shape \(2, 4\), not \(4, 2\)"),
        (lambda writer: writer.write("w0", [torch.ones(7)]), "8 elements and got 7"),
        (lambda writer: writer.write("w0", [torch.ones(7)] * 2), "8 elements and got more"),
        (lambda writer: writer.write_file("../x", ""), r"'\.\./x' is no file name inside"),
        (lambda writer: writer.write_file("/x", ""), "'/x' is no file name inside"),
        (lambda writer: writer.write_file("", ""), "'' is no file name inside"),
        (lambda writer: writer.write_file("model.safetensors", ""), "in .*out already"),
    ],
)
def test_misuse_is_refused_and_leaves_nothing(tmp_path, misuse, message):
    plan = plan_of({name: TENSORS[name] for name in ("w0", "w1")})
    with pytest.raises(ValueError, match=message), ModelWriter(tmp_path / "out", plan) as writer:
        misuse(writer)
    assert os.listdir(tmp_path) == []


def test_a_tensor_is_written_once(tmp_path):
    with pytest.raises(ValueError, match=r"'w0' of .*out is written already"):
        write_twice(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def write_twice(out):
    with ModelWriter(out, plan_of(TENSORS)) as writer:
        writer.write("w0", TENSORS["w0"])
        writer.write("w0", TENSORS["w0"])


def test_too_many_elements_never_reach_the_neighbour(tmp_path):
    tensors = {name: TENSORS[name] for name in ("w0", "w1")}
    with ModelWriter(tmp_path / "out", plan_of(tensors)) as writer:
        writer.write("w1", tensors["w1"])
        with pytest.raises(ValueError, match="got more"):
            writer.write("w0", [torch.full((4,), 9.0)] * 4)
        writer.write("w0", tensors["w0"])
    assert same(open_model(tmp_path / "out"), tensors)


@pytest.mark.parametrize(
    ("plan", "size", "message"),
    [
        ({}, 1, "the plan names no tensor"),
        ({"w": (torch.complex128, (1,))}, 1, "'w' cannot be written as torch.complex128"),
        (plan_of(TENSORS), 0, "shard_size=0 must be positive"),
        (plan_of(TENSORS), "5 apples", "shard_size='5 apples' is no size"),
    ],
)
def test_a_bad_plan_is_refused_on_construction(tmp_path, plan, size, message):
    with pytest.raises(ValueError, match=message):
        ModelWriter(tmp_path / "out", plan, shard_size=size)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", range(1, 5))
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_at_any_moment_is_named_and_leaves_nothing(
    tmp_path, monkeypatch, call, moment, number
):
    plain, calls = getattr(os, call), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == moment:
            raise OSError(number, os.strerror(number))
        return plain(*arguments)

    monkeypatch.setattr(os, call, full)
    message = (
        "out was not made because the disk is full: its weights need [0-9,]+ bytes and [0-9,]+"
    )
    with pytest.raises(ValueError, match=message):
        write_all(tmp_path / "deep" / "out", TENSORS, shard_size=32)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"disk is full: its weights need \d+ bytes and 10 are"):
        ModelWriter(tmp_path / "deep" / "out", plan_of(TENSORS)).__enter__()
    assert os.listdir(tmp_path) == []


def test_a_write_that_the_system_cuts_short_is_continued(tmp_path, monkeypatch):
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: plain(file, data[:3], at))
    write_all(tmp_path / "out", TENSORS)
    assert same(open_model(tmp_path / "out"), TENSORS)


def killed_at_line(number, out):
    """Write in another process that kills itself before the given line of ours; was it killed?"""
    child = os.fork()
    if child == 0:
        lines = iter(range(number))

        def trace(frame, event, argument):
            if not frame.f_code.co_filename.endswith(("/folders/writing.py", "/weights/atomic.py")):
                return None
            if event == "line" and next(lines, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            write_all(out, TENSORS, shard_size=64)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def test_killed_at_any_line_the_target_is_whole_or_absent_and_the_next_run_cleans_up(tmp_path):
    out = tmp_path / "out"
    seen = {"absent": 0, "whole": 0}
    line = 0
    while killed_at_line(line, out):
        seen["whole" if out.exists() else "absent"] += 1
        if not out.exists():
            write_all(out, TENSORS, shard_size=64)
        assert same(open_model(out), TENSORS)
        with pytest.raises(ValueError, match="exists already"):
            write_all(out, TENSORS)
        assert os.listdir(tmp_path) == ["out"]
        shutil.rmtree(out)
        line += 7
    assert seen["absent"] > 20
    assert seen["whole"] > 0


def test_what_comes_along_from_a_model(tmp_path):
    along = [
        *("config.json", "generation_config.json", "preprocessor_config.json", "LICENSE"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "merges.txt"),
        *("vocab.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
        *("processor_config.json", "video_preprocessor_config.json", "source.spm", "LICENSE.txt"),
        *("chat_template.jinja", "chat_template.json", "modeling_own.py", "USE_POLICY.md"),
    ]
    stays = [
        *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md"),
        *(
            "pytorch_model.bin.index.json",
            "trainer_state.json",
            "training_args.bin",
            "optimizer.pt",
        ),
        *("adapter_config.json", "adapter_model.safetensors", ".gitattributes", "rng_state.pth"),
    ]
    for name in along + stays:
        (tmp_path / name).touch()
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").touch()
    (tmp_path / "config.json.py").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in companion_files(tmp_path)]
    assert found == sorted([*along, "additional_chat_templates/tools.jinja"])


def test_companions_that_are_links_out_of_the_folder_are_refused(tmp_path):
    model = tmp_path / "hub" / "snapshots" / "a1b2"
    (model / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    for name in ("tokenizer.json", "additional_chat_templates/a.jinja"):
        blob = tmp_path / "hub" / "blobs" / name.replace("/", "-")
        blob.write_text("{}")
        (model / name).symlink_to(blob)
    assert len(companion_files(model)) == 2
    (tmp_path / "secret").write_text("mine")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"LICENSE is a link to .*secret, outside of its folder"):
        companion_files(model)
