import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
import transformers

from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.probing import read_texts, similarity_to_newest
from recall_lightning.merging.folders.settings import MergeSettings, ProbeSettings
from tests.support.tiny_models import SENTENCES, checkpoint, llama, loaded, saved, tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An older and a newer model, alike in the first block; and texts."""
    folder = tmp_path_factory.mktemp("models")
    old = llama(0)
    new = llama(0)
    with torch.no_grad():
        for parameter in new.model.layers[1].parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    (folder / "texts.txt").write_text("\n".join(SENTENCES) + "\n\n")
    probe = folder / "texts.txt"
    return {"old": saved(old, folder / "old"), "new": saved(new, folder / "new"), "probe": probe}


def merge(out, paths, file, options=None, **probe):
    settings = {"method": "recall", "options": options or {}}
    probe = ProbeSettings(str(file), **{"typical_samples": 8} | probe)
    return merge_files(MergeSettings(paths, str(out), probe=probe, **settings))


def states(path):
    """Masked means of each block's output, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    model, outputs = loaded(path), []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    mask = batch["attention_mask"].unsqueeze(-1).double()
    return [(h.double() * mask).sum(1) / mask.sum(1) for h in outputs]


def expected_similarity(old, new):
    values = []
    for h_old, h_new in zip(states(old), states(new), strict=True):
        distances = [(a - b).square().sum() for i, a in enumerate(h_old) for b in h_old[:i]]
        squared_sigma = torch.stack(distances).median()
        kernel = torch.exp(-(h_old - h_new).square().sum(1) / (2 * squared_sigma))
        values.append(float(kernel.mean()))
    return values


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_coefficients_are_the_softmax_of_the_blocks_similarity(models, tmp_path, temperature):
    paths = [models["old"], models["new"]]
    options = {"temperature": temperature}
    report = merge(tmp_path / "out", paths, models["probe"], options)
    first, second = expected_similarity(*paths)
    assert first > 0.999 > 0.9 > second
    recorded = json.loads((tmp_path / "out" / "coefficients.json").read_text())["blocks"]
    old, new, found = (tensors(path) for path in (*paths, tmp_path / "out"))
    for i, similarity in enumerate((first, second)):
        share = 1 / (1 + math.exp((1 - similarity) / temperature))
        name = f"model.layers.{i}"
        assert report.weights[0][name] == pytest.approx(share, abs=1e-5)
        assert recorded[i]["weights"] == pytest.approx([share, 1 - share], abs=1e-5)
        assert recorded[i]["similarity"] == pytest.approx([similarity, 1], abs=1e-5)
        weight = f"{name}.mlp.up_proj.weight"
        assert torch.allclose(found[weight], share * old[weight] + (1 - share) * new[weight])
    assert f"{recorded[1]['weights'][0]:.4f}" in (tmp_path / "out" / "README.md").read_text()


def test_identical_models_have_equal_weights_and_come_back(models, tmp_path):
    report = merge(tmp_path / "out", [models["new"]] * 3, models["probe"])
    for given in report.weights:
        assert list(given.values()) == pytest.approx([1 / 3] * 2)
    assert all(
        torch.equal(tensors(tmp_path / "out")[n], t) for n, t in tensors(models["new"]).items()
    )


def test_models_are_loaded_one_at_a_time(models, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    original = transformers.LlamaForCausalLM.from_pretrained

    def counted(*args, **kwargs):
        most.append(len(alive))
        result = original(*args, **kwargs)
        alive.add(result[0])
        return result

    gc.collect()
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", counted)
    merge(tmp_path / "out", [models["old"]] * 2 + [models["new"]], models["probe"])
    assert most == [0, 0, 0]


@pytest.mark.parametrize("measure", ["cka", "cosine"])
def test_other_measures_and_a_choice_of_samples(models, tmp_path, measure):
    paths = [models["old"], models["new"]]
    report = merge(tmp_path / "out", paths, models["probe"], measure=measure, typical_samples=4)
    assert report.similarity[0]["model.layers.0"] == pytest.approx(1, abs=1e-4)
    assert report.similarity[0]["model.layers.1"] < 0.999
    assert set(report.similarity[1].values()) == {1.0}


def test_a_checkpoint_is_measured_with_its_donors_architecture(models, tmp_path):
    old = checkpoint(loaded(models["old"]), tmp_path / "old.ckpt")
    plain = merge(tmp_path / "1", [models["old"], models["new"]], models["probe"])
    mixed = merge(tmp_path / "2", [old, models["new"]], models["probe"])
    assert mixed.weights == plain.weights


def test_texts_longer_than_the_model_can_take_are_cut(tmp_path):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 8}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, pad_token_id=0))
    path = saved(model, tmp_path / "a")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 2 + [SENTENCES[-1] * 3]))
    assert max(len(sentence.split()) for sentence in SENTENCES) > 8
    merge(tmp_path / "out", [path, path], tmp_path / "texts.txt")


def test_every_kind_of_line_is_read(tmp_path):
    lines = [
        json.dumps("bare"),
        json.dumps({"text": " padded "}),
        json.dumps({"prompt": "p", "completion": "c", "id": 3}),
        json.dumps({"messages": [{"role": "user", "content": "u"}, {"content": "v"}, 3]}),
        "",
        json.dumps([1, 2]),
        json.dumps({"text": None}),
    ]
    file = tmp_path / "probe.jsonl"
    file.write_text("\n".join(lines))
    assert list(read_texts(file, 9)) == ["bare", "padded", "p\nc", "u\nv"]
    assert list(read_texts(file, 2)) == ["bare", "padded"]


def refused(tmp_path, match, paths, file, **settings):
    with pytest.raises(ValueError, match=match) as caught:
        merge(tmp_path / "deep" / "out", paths, file, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"probe.jsonl has 0 usable lines, and two"),
        ('{"text": "one"}\n{"other": 1}\n', r"probe.jsonl has 1 usable line, and two"),
        ('{"text": "a"}\n{"text": \n', r"line 2 of .*probe.jsonl is no JSON"),
        (None, r"probe.jsonl does not exist"),
        (b"\xff\xfe\xff", r"probe.jsonl cannot be read as text"),
    ],
)
def test_a_probe_file_of_no_use_is_named(models, tmp_path, content, match):
    file = tmp_path / "probe.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tmp_path, match, [models["old"], models["new"]], file)


def test_settings_are_checked_before_anything_is_measured(models, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", None)
    paths = [models["old"], models["new"]]
    probe = ProbeSettings(str(models["probe"]))
    for wrong in ({"rank": 2}, {"shard_size": "big"}, {"device": "nonsense"}):
        settings = MergeSettings(
            paths, str(tmp_path / "out"), method="recall", probe=probe, **wrong
        )
        with pytest.raises(ValueError, match=next(iter(wrong))):
            merge_files(settings)


def test_a_missing_tokenizer_is_named(tmp_path, models):
    bare = [saved(llama(i), tmp_path / str(i), tokenizer=False) for i in range(2)]
    refused(tmp_path, "no model has a tokenizer: save one in", bare, models["probe"])


def test_a_broken_tokenizer_is_named(tmp_path, models):
    path = saved(llama(0), tmp_path / "a")
    Path(path, "tokenizer.json").write_text("{}")
    refused(tmp_path, "the tokenizer in .*a cannot be loaded", [path, path], models["probe"])


def test_tokens_that_the_model_does_not_know_are_named(tmp_path, models):
    path = saved(llama(0, vocab_size=8), tmp_path / "a")
    refused(tmp_path, "a cannot run on the probe's texts", [path, path], models["probe"])


def test_weights_without_an_architecture_are_named(models, tmp_path):
    ckpt = checkpoint(loaded(models["old"]), tmp_path / "a.ckpt")
    refused(tmp_path, "nothing says what .*a.ckpt is", [ckpt, ckpt], models["probe"])


def test_a_config_that_does_not_fit_the_weights_is_named(models, tmp_path):
    paths = [saved(llama(i), tmp_path / str(i)) for i in range(2)]
    for path in paths:
        file = Path(path, "config.json")
        config = json.loads(file.read_text())
        config["num_hidden_layers"] = 3
        config.pop("layer_types", None)
        file.write_text(json.dumps(config))
    refused(tmp_path, "1 cannot be measured because it lacks weights", paths, models["probe"])


def test_an_unknown_architecture_is_named(models, tmp_path):
    paths = [saved(llama(i), tmp_path / str(i)) for i in range(2)]
    file = Path(paths[1], "config.json")
    file.write_text(file.read_text().replace("LlamaForCausalLM", "Unknown"))
    refused(tmp_path, "1 cannot be loaded to be measured", paths, models["probe"])


def test_states_that_are_not_finite_are_named(models, tmp_path):
    broken = llama(0)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight.fill_(torch.inf)
    path = saved(broken, tmp_path / "broken")
    match = "broken makes NaN or infinite hidden states in block model.layers.1"
    refused(tmp_path, match, [path, models["new"]], models["probe"])
    refused(tmp_path, match, [models["new"], path], models["probe"])


def test_similarity_is_returned_with_the_blocks_shallow_to_deep(models, tmp_path):
    from recall_lightning.merging.folders.inputs import open_models

    paths = [models["old"], models["new"]]
    probe = ProbeSettings(str(models["probe"]))
    settings = MergeSettings(paths, str(tmp_path / "out"), method="recall", probe=probe)
    similarity, names = similarity_to_newest(open_models(paths, None), settings)
    assert names == ["model.layers.0", "model.layers.1"]
    assert similarity[0]["model.layers.0"] > similarity[0]["model.layers.1"]
    assert similarity[1] == dict.fromkeys(names, 1.0)
