"""Checkpoints of a tiny model from disk, exported and loaded by transformers and PEFT alone."""

import json
import os
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
)

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import InstructionStream, InstructionTask, Template
from recall_lightning.export.command import main
from recall_lightning.export.folder import export
from recall_lightning.export.merging import merged_into_base
from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from recall_lightning.recall.settings import SampleSettings
from tests.support.tiny_language_model import CHAT, save_model, save_tokenizer
from tests.support.training import quiet_trainer

ANSWER = Template("{q}", "{a}", score="exact_match", max_new_tokens=4)
LORA = LoraSettings(r=4, alpha=8, target_modules="all-linear")
TOKENS = torch.arange(2, 14).view(2, 6)


@pytest.fixture
def base(tmp_path):
    return save_model(tmp_path / "base")


def train(base, lora=None, precision="32-true", model=None, **kwargs):
    """Train two tasks; return the trained module and its checkpoint."""
    folder = base.removesuffix("base")
    rows = [{"q": f"what is {n}?", "a": f"{n}"} for n in range(8)]
    with open(f"{folder}/rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    tasks = [InstructionTask(name, ANSWER, file.name, file.name) for name in ("first", "second")]
    data = InstructionStream(tasks, base, max_length=32, batch_size=4)
    module = CausalLMModule(
        model or base, lambda params: torch.optim.AdamW(params, lr=1e-2), lora=lora, **kwargs
    )
    trainer = quiet_trainer(
        RecallCallback(every=1.0, rule="rbf", samples=SampleSettings(typical=4)),
        ForgettingMonitor("val/score"),
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        precision=precision,
    )
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, datamodule=data)
    checkpoint = f"{folder}/run.ckpt"
    trainer.save_checkpoint(checkpoint)
    return module.eval(), checkpoint


def same_logits(model, module):
    for part in module.modules():  # Lightning's bf16-true rounds buffers that no checkpoint holds
        if hasattr(part, "original_inv_freq"):
            part.inv_freq = part.compute_default_rope_parameters(part.config)[0]
    with torch.no_grad():
        return torch.equal(model(TOKENS).logits, module(TOKENS).logits)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_whole_model_is_loaded_with_identical_logits_and_generates(base, precision, tmp_path):
    module, checkpoint = train(base, precision=precision)
    export(checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == module.model.dtype
    assert same_logits(model, module)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("what is 5?", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3).shape[1] > prompt["input_ids"].shape[1]
    assert GenerationConfig.from_pretrained(tmp_path / "out").use_cache


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_an_adapter_is_loaded_by_peft_with_identical_logits(base, precision, tmp_path, monkeypatch):
    dtype = None if precision == "32-true" else "bfloat16"
    module, checkpoint = train(base, LORA, precision, dtype=dtype)
    export(checkpoint, tmp_path / "out")
    monkeypatch.chdir("/")  # the base is named by a path that holds from everywhere
    config = PeftConfig.from_pretrained(tmp_path / "out")
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=dtype),
        tmp_path / "out",
        autocast_adapter_dtype=precision == "bf16-mixed",
    )
    assert same_logits(loaded, module)
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) < 1e5


@pytest.mark.parametrize("fresh", [False, True])
def test_an_adapter_is_merged_into_its_base(base, fresh, tmp_path):
    module, checkpoint = train(base, replace(LORA, fresh_per_task=fresh))
    export(checkpoint, tmp_path / "out", merge_adapter=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(
            model(TOKENS).logits, module(TOKENS).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-mixed"])
def test_an_adapter_is_merged_into_a_base_of_half_the_bits(base, precision, tmp_path):
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("float16 is trained on a GPU")
    dtype = "float16" if precision == "16-mixed" else "bfloat16"
    module, checkpoint = train(base, LORA, precision, dtype=dtype)
    export(checkpoint, tmp_path / "out", merge_adapter=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype)
    with torch.no_grad():
        found, expected = model(TOKENS).logits.float(), module(TOKENS).logits.float()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_modules_that_are_trained_as_a_whole_are_in_the_adapter(base, tmp_path):
    module, checkpoint = train(base, replace(LORA, modules_to_save=["lm_head"]))
    export(checkpoint, tmp_path / "out")
    assert same_logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"), module)


def test_a_tied_head_stays_tied(tmp_path):
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    module, checkpoint = train(base)
    export(checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert same_logits(model, module)


TIED = {"target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    "settings",
    [
        TIED | {"modules_to_save": ["lm_head"]},
        TIED | {"modules_to_save": ["embed_tokens"]},
        TIED | {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
def test_a_tied_head_that_was_trained_apart_is_exported_so(settings, tmp_path):
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    module, checkpoint = train(base, replace(LORA, **settings))
    export(checkpoint, tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    export(checkpoint, tmp_path / "merged", merge_adapter=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    with torch.no_grad():
        expected = module(TOKENS).logits
        torch.testing.assert_close(loaded(TOKENS).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_peft_left_untied_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(BaseTuner, "get_model_config", staticmethod(lambda model: {}))
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["lm_head"])
    )
    merged = merged_into_base(model)
    assert merged.config.tie_word_embeddings is False
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight


def test_a_tied_head_beside_an_adapter_stays_tied(tmp_path):
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    _, checkpoint = train(base, LORA)
    export(checkpoint, tmp_path / "out", merge_adapter=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_was_written_wrong_does_not_appear(base, lora, tmp_path, monkeypatch, capsys):
    _, checkpoint = train(base, lora)
    kind = PeftModel if lora else LlamaForCausalLM
    save = kind.save_pretrained

    def save_another(model, *args, **kwargs):
        torch.nn.init.normal_(model.get_input_embeddings().weight)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        return save(model, *args, **kwargs)

    monkeypatch.setattr(kind, "save_pretrained", save_another)
    before = sorted(path.name for path in tmp_path.iterdir())
    said = refused(capsys, checkpoint, "--out", tmp_path / "deep" / "out")
    assert "out was not made: loaded again, its logits differ from the checkpoint's" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("lora", [None, LORA])
def test_weights_that_are_no_numbers_are_named(base, lora, tmp_path, capsys):
    _, checkpoint = train(base, lora)
    held = torch.load(checkpoint)
    name = next(name for name in held["state_dict"] if "layers.1" in name)
    held["state_dict"][name][0] = torch.nan
    torch.save(held, checkpoint)
    said = refused(capsys, checkpoint, "--out", tmp_path / "out")
    assert f"{name.removeprefix('model.')!r} holds NaN" in said
    assert not (tmp_path / "out").exists()


def test_a_model_that_moved_is_found_where_it_is_now(base, tmp_path):
    module, checkpoint = train(base, LORA)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="--tokenizer tells where it is"):
        export(checkpoint, tmp_path / "out")
    export(checkpoint, tmp_path / "out", model=str(tmp_path / "moved"))
    assert same_logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"), module)


def test_a_model_that_has_changed_is_not_exported_as_what_was_trained(base, tmp_path):
    _, checkpoint = train(base)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(
        ValueError, match=r"another model than .*: rms_norm_eps is 0.5 and not 1e-06"
    ):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_tells_stream_method_matrix_and_coefficients(base, tmp_path):
    _, checkpoint = train(base)
    export(checkpoint, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "first → second",
        "method: `recall`",
        "rule: rbf",
        "| after second |",
        "forgetting",
    ):
        assert said in card
    assert "| `model.model.layers.1` | 0." in card
    assert "not finished" not in card


def test_a_checkpoint_from_the_midst_of_a_task_is_said_to_be_one(base, tmp_path, capsys):
    _, checkpoint = train(base)
    content = torch.load(checkpoint, weights_only=False)
    for state in content["callbacks"].values():
        state |= {"task_ended": False, "step_in_task": 1}
    torch.save(content, checkpoint)
    main([checkpoint, "--out", str(tmp_path / "out")])
    said = "was written in the midst of second, after 1 of 2 steps"
    assert f"warning: {checkpoint} {said}" in capsys.readouterr().err
    assert f"not finished: the checkpoint {said}" in (tmp_path / "out" / "README.md").read_text()


def test_the_merge_command_reads_whole_models_and_adapters(base, tmp_path):
    for name, lora in (("whole", None), ("adapter", LORA)):
        module, checkpoint = train(base, lora)
        for copy in ("a", "b"):
            export(checkpoint, tmp_path / f"{name}_{copy}")
        models = [str(tmp_path / f"{name}_{copy}") for copy in ("a", "b")]
        merge_files(MergeSettings(models=models, out=str(tmp_path / name)))
        loaded = (AutoPeftModelForCausalLM if lora else AutoModelForCausalLM).from_pretrained(
            tmp_path / name
        )
        with torch.no_grad():
            torch.testing.assert_close(
                loaded(TOKENS).logits, module(TOKENS).logits, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("lora", [None, LORA])
def test_its_files_have_the_modes_that_the_user_wants(base, lora, mask, tmp_path):
    _, checkpoint = train(base, lora)
    before = os.umask(mask)
    try:
        export(checkpoint, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask


@pytest.mark.parametrize("about", [3, {"lora": {"q": 1}, "model": "a", "tokenizer": None}])
def test_a_checkpoint_that_says_something_else_of_its_model_is_refused(tmp_path, about):
    held = {"state_dict": {}, "global_step": 1, "causal_lm": about}
    torch.save(held, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"no CausalLMModule|does not say how its model is built"):
        export(tmp_path / "x.ckpt", tmp_path / "out")


def test_a_chat_template_comes_along(base, tmp_path):
    save_tokenizer(tmp_path / "base", chat=CHAT, pad=True)
    _, checkpoint = train(base)
    export(checkpoint, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_said_and_nothing_is_written(base, tmp_path, capsys):
    out = tmp_path / "out"
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04")
    assert "no file" in refused(capsys, tmp_path / "none.ckpt", "--out", out)
    assert "no CausalLMModule" in refused(capsys, tmp_path / "other.ckpt", "--out", out)
    assert "cannot be read" in refused(capsys, tmp_path / "broken.ckpt", "--out", out)
    assert "consolidate_checkpoint" in refused(capsys, tmp_path, "--out", out)
    assert "Hugging Face already" in refused(capsys, base, "--out", out)
    _, whole = train(base)
    assert "no adapter" in refused(capsys, whole, "--out", out, "--merge-adapter")
    assert "exists already" in refused(capsys, whole, "--out", tmp_path / "base")
    _, fresh = train(base, replace(LORA, fresh_per_task=True))
    assert "give --merge-adapter" in refused(capsys, fresh, "--out", out)
    other = save_model(tmp_path / "other", initializer_range=0.5)
    _, adapter = train(base, LORA)
    assert "another base" in refused(capsys, adapter, "--out", out, "--model", other)
    assert not out.exists()
