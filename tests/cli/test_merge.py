import os

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recall_lightning.cli.merge import main, merge_parser
from recall_lightning.merging.folders import merge as merging
from tests.support.processes import run_python


@pytest.fixture
def models(tmp_path):
    """Two files of two layers, and what a merge needs besides."""
    for i, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(i)
        held = {f"layers.{k}.w": torch.randn(4, 4, generator=generator) for k in range(2)}
        save_file(held, tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors") for name in "abc"]


def merged(out):
    return load_file(f"{out}/model.safetensors")


def config(tmp_path, **settings):
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(file)


def test_it_says_what_it_did(models, tmp_path, capsys):
    main([*models[:2], "--out", str(tmp_path / "out"), "--weights", "0.75,0.25"])
    out, err = capsys.readouterr()
    assert "all 2" in out  # blocks have one weight
    assert "0.7500" in out
    assert "kB/s" in out
    assert "no config.json came along" in out
    assert "merging" in err
    first, second = (load_file(path) for path in models[:2])
    expected = 0.75 * first["layers.0.w"].double() + 0.25 * second["layers.0.w"].double()
    assert torch.equal(merged(tmp_path / "out")["layers.0.w"], expected.float())


def test_many_blocks_are_shown_in_part(tmp_path, capsys):
    save_file({f"h.{i}.w": torch.ones(2) for i in range(50)}, tmp_path / "a.safetensors")
    file = config(tmp_path, weights=[[0.1, 0.9], 1.0])
    main([str(tmp_path / "a.safetensors")] * 2 + ["--out", str(tmp_path / "out"), "--config", file])
    out = capsys.readouterr().out
    assert "and 10 more blocks" in out
    assert "h.45" not in out


def test_names_that_look_like_markup_are_shown(tmp_path, capsys):
    save_file({"[/b].w": torch.ones(2), "[/d].w": torch.ones(2)}, tmp_path / "a.safetensors")
    file = config(tmp_path, weights=[[0.1, 0.9], 1.0], out=str(tmp_path / "o[/c]"))
    main([str(tmp_path / "a.safetensors")] * 2 + ["--config", file])
    out = capsys.readouterr().out
    assert "[/b]" in out
    assert "o[/c]: " in out


def test_a_yaml_file_sets_everything_and_the_command_line_goes_first(models, tmp_path):
    weights = [[1, 0], {"layers.0.*": 0, "*": 1}]
    file = config(tmp_path, models=models[:2], out=str(tmp_path / "1"), weights=weights)
    main(["--config", file])
    main(["--config", file, "--out", str(tmp_path / "2"), "--weights", "0,1"])
    first, second = (load_file(path) for path in models[:2])
    assert torch.equal(merged(tmp_path / "1")["layers.0.w"], first["layers.0.w"])
    assert torch.equal(merged(tmp_path / "1")["layers.1.w"], second["layers.1.w"])
    assert torch.equal(merged(tmp_path / "2")["layers.0.w"], second["layers.0.w"])


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "0.9,0.1", "--normalize", "false"],
        ["--method", "ties", "--density", "[0.2, 1.0]", "--elect", "count", "--base", "C"],
        ["--method", "dare", "--density", "0.5", "--seed", "3", "--base", "C", "--scale", "1e-1"],
        ["--method", "slerp", "--out-dtype", "float16", "--shard-size", "1KB"],
    ],
)
def test_what_it_writes_down_can_be_given_back(models, tmp_path, options):
    options = [models[2] if option == "C" else option for option in options]
    main([*models[:2], "--out", str(tmp_path / "1"), *options])
    main(["--config", str(tmp_path / "1" / "merge.yaml"), "--out", str(tmp_path / "2")])
    first, second = merged(tmp_path / "1"), merged(tmp_path / "2")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "1" / "merge.yaml").read_text() == (
        tmp_path / "2" / "merge.yaml"
    ).read_text()


@pytest.mark.parametrize("number", ["1e-1", "1E-1", ".1e0", "1e-01", "+1e-1"])
def test_a_number_is_one_however_it_is_written(models, tmp_path, number):
    for out, weights in (("flat", f"[{number}, 9e-1]"), ("deep", f"[[{number}], {{'*': 9e-1}}]")):
        file = tmp_path / f"{out}.yaml"
        file.write_text(f"models: {models[:2]}\nout: {tmp_path / out}\nweights: {weights}\n")
        main(["--config", str(file)])
    main([*models[:2], "--out", str(tmp_path / "line"), "--weights", f"{number},9e-1"])
    plain = merged(tmp_path / "flat")
    first, second = (load_file(path) for path in models[:2])
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, 0.1 * first[name] + 0.9 * second[name])
        assert torch.equal(tensor, merged(tmp_path / "line")[name])
        assert torch.equal(tensor, merged(tmp_path / "deep")[name])
    density = ["--method", "ties", "--base", models[2], "--density", f"[{number}, 2e-1]"]
    main([*models[:2], "--out", str(tmp_path / "ties"), *density])


def test_a_setting_that_is_there_twice_is_refused(models, tmp_path, capsys):
    file = tmp_path / "merge.yaml"
    file.write_text(f"models: {models}\nout: {tmp_path / 'out'}\ndtype: float32\ndtype: float64\n")
    refused(capsys, tmp_path, ["--config", str(file)], "the key 'dtype' is there twice")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_what_it_makes_has_the_modes_that_the_user_wants(models, tmp_path, mask):
    before = os.umask(mask)
    try:
        main([*models[:2], "--out", str(tmp_path / "new" / "out"), "--shard-size", "64"])
    finally:
        os.umask(before)
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask


def test_every_option_of_every_method_is_offered():
    parsed = vars(merge_parser().parse_args([]))
    assert {"density", "gamma", "ridge", "temperature", "seed", "rescale"} <= parsed.keys()
    assert all(value is None or value == [] for value in parsed.values())


# what is wrong: one line, exit code 2, and nothing is left


def refused(capsys, tmp_path, args, match):
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(args)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("recall-lightning merge: error: ")
    assert err.count("\n") == 1
    assert match in err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([], "no output folder is given"),
        (["--out", "OUT"], "0 models are given"),
        (["A", "--out", "OUT"], "1 model is given"),
        (["A", "B", "--out", "OUT", "--weights", "a,b"], "weights='a,b' must be numbers"),
        (["A", "B", "--out", "OUT", "--weights", "0.5"], "1 weight is given for 2 models"),
        (["A", "B", "--out", "OUT", "--weights", "1,nan"], "weights[1]=nan must be finite"),
        (["A", "B", "--out", "OUT", "--weights", "{a: 1}"], "must be a list"),
        (["A", "B", "--out", "OUT", "--weights", "[1, {"], "must be numbers with commas"),
        (["A", "B", "--out", "OUT", "--weights", "1,-1"], "sum to 0"),
        (["A", "B", "--out", "OUT", "--method", "magic"], "method='magic' is unknown"),
        (["A", "B", "--out", "OUT", "--density", "0.5"], "linear has no option 'density'"),
        (["A", "B", "--out", "OUT", "--dtype", "int8"], "dtype='int8' is unknown"),
        (["A", "B", "--out", "OUT", "--device", "cuda:9"], "device='cuda:9' cannot be used"),
        (["A", "B", "--out", "OUT", "--rank", "0.5"], "rank=0.5 must be"),
        (["A", "B", "--out", "OUT", "--max-length", "x"], "invalid int value: 'x'"),
        (["A", "B", "--out", "OUT", "--pool-size", "9"], "has no option 'pool_size'"),
        (["A", "B", "--out", "OUT", "--shard-size", "big"], "shard_size='big' is no size"),
        (["A", "B", "--out", "OUT", "--foo", "1"], "unrecognized arguments: --foo"),
        (["A", "B", "--out"], "expected one argument"),
        (["A", "B", "--out", "A"], "a.safetensors exists already"),
        (["A", "B", "--out", "A/deep/out"], "no folder can be made in"),
        (["A", "nowhere", "--out", "OUT"], "nowhere does not exist"),
        (["A", "B", "--out", "OUT", "--method", "ties", "--density", "1"], "give base"),
        (["A", "B", "--out", "OUT", "--method", "ties", "--base", "A"], "ties needs a density"),
        (["A", "B", "--out", "OUT", "--donor", "nowhere"], "nowhere does not exist"),
        (
            ["A", "B", "--out", "OUT", "--method", "recall", "--probe", "nowhere"],
            "nowhere does not exist",
        ),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_two(models, tmp_path, capsys, args, match):
    places = {"A": models[0], "B": models[1], "OUT": str(tmp_path / "deep" / "out")}
    places["A/deep/out"] = f"{models[0]}/deep/out"
    refused(capsys, tmp_path, [places.get(arg, arg) for arg in args], match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("models: [a\n", "cannot be read as YAML"),
        ("models: \x00\n", "cannot be read as YAML"),
        ("- a\n", "holds no settings"),
        ("", "holds no settings"),
        ("modelz: [a]\n", "unknown setting 'modelz'"),
        ("1: 2\n", "unknown setting 1"),
        ("config: x\n", "unknown setting 'config'"),
        ("out: OUT\nmodels: a\n", "models='a' must be a list of paths"),
        ("out: [OUT]\nmodels: [a, b]\n", "must be a path"),
        ("out: OUT\nmodels: [a, b]\nmethod: [x]\n", "is unknown: use 'linear'"),
        ("out: OUT\nmodels: [a, b]\nweights: {a: 1}\n", "must be a list"),
        ("out: OUT\nmodels: [a, b]\nweights: [a, {}]\n", "weights[0]: 'a' must be a number"),
        ("out: OUT\nmodels: [a, b]\nrank: 0.5\n", "rank=0.5 must be"),
        ("out: OUT\nmodels: [a, b]\ndevice: 3\n", "device=3 cannot be used"),
        ("out: OUT\nmodels: [a, b]\nshard_size: [1]\n", "shard_size=[1] must be"),
        ("out: OUT\nmodels: [a, b]\nmethod: recall\nprobe: [x]\n", "probe=['x'] must be a path"),
        ("out: OUT\nmodels: [a, b]\nmethod: ties\nbase: a\ndensity: []\n", "density: []"),
    ],
)
def test_a_file_of_settings_that_is_wrong_is_one_line(tmp_path, capsys, text, match):
    file = tmp_path / "merge.yaml"
    file.write_text(text.replace("OUT", str(tmp_path / "out")))
    refused(capsys, tmp_path, ["--config", str(file)], match)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
    ],
)
def test_too_little_memory_is_one_line(models, tmp_path, capsys, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(merging, "merge_files", fail)
    args = [*models, "--out", str(tmp_path / "out")]
    refused(capsys, tmp_path, args, "the memory does not suffice")


def test_an_interruption_is_one_line(models, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "merge_files", fail)
    with pytest.raises(SystemExit) as caught:
        main([*models, "--out", str(tmp_path / "out")])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "recall-lightning merge: interrupted, nothing was written\n"


def test_bugs_are_not_hidden(models, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(merging, "merge_files", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([*models, "--out", str(tmp_path / "out")])


@pytest.mark.processes
def test_it_is_a_command_of_the_package(models, tmp_path):
    code = "import sys; from recall_lightning.cli.main import main; main(sys.argv[1:])"
    command = ["-c", code, "merge", *models, "--out", tmp_path / "out", "--weights", "1"]
    done = run_python(*command, folder=tmp_path, fails=True)
    assert done.code == 2
    [line] = done.err.splitlines()
    assert line.startswith("recall-lightning merge: error: 1 weight is given for 3 models")
    assert not (tmp_path / "out").exists()
