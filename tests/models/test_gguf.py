"""Models in files of GGUF, written by the package of llama.cpp and loaded by folder and name."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForCausalLM, AutoTokenizer

from recall_lightning.data import TextFilesStream, TextTask
from recall_lightning.data.tokenizers import load_tokenizer
from recall_lightning.export.folder import export
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from tests.support.gguf_files import save_gguf
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import quiet_trainer

NAME = "tiny.Q8_0.gguf"
TOKENS = torch.arange(2, 26).view(2, 12)


@pytest.fixture
def source():
    torch.manual_seed(0)
    return tiny_llama(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2)


@pytest.fixture
def folder(source, tmp_path):
    (tmp_path / "base").mkdir()
    return save_gguf(source, tmp_path / "base" / NAME)


def stream(folder, tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40)
    return TextFilesStream(
        [TextTask("prose", str(tmp_path / "text.txt"))], folder, 16, batch_size=4
    )


def trained(module, data):
    trainer = quiet_trainer(max_epochs=1, reload_dataloaders_every_n_epochs=1)
    trainer.fit(module, datamodule=data)
    return trainer


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_the_weights_are_those_of_the_file_unpacked(source, folder):
    module = CausalLMModule(folder, gguf_file=NAME).eval()
    assert torch.allclose(logits(module), logits(source), atol=1e-5)
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}
    assert CausalLMModule(folder, gguf_file=NAME, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_stream_takes_its_tokens_from_the_same_file(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("the cat")["input_ids"]) == "the cat"
    assert (tokenizer.eos_token, tokenizer.name_or_path) == ("</s>", folder)
    said = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == "user hi</s>"
    assert load_tokenizer(f"{folder}/{NAME}").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, target_modules="all-linear")])
def test_it_is_trained_resumed_and_exported_as_a_folder_that_needs_no_gguf(folder, tmp_path, lora):
    module, data = CausalLMModule(folder, gguf_file=NAME, lora=lora), stream(folder, tmp_path)
    trained(module, data).save_checkpoint(tmp_path / "run.ckpt")
    again = CausalLMModule(folder, gguf_file=NAME, lora=lora)
    quiet_trainer().validate(again, data, ckpt_path=str(tmp_path / "run.ckpt"), verbose=False)
    assert torch.equal(logits(again.eval()), logits(module.eval()))
    export(tmp_path / "run.ckpt", tmp_path / "out", merge_adapter=lora is not None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(model), logits(module), atol=1e-5)
    assert not list((tmp_path / "out").glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the cat")["input_ids"] == data.tokenizer("the cat")["input_ids"]


def test_an_adapter_alone_is_not_exported_as_its_base_could_not_be_named(folder, tmp_path):
    lora = LoraSettings(r=2, target_modules="all-linear")
    module = CausalLMModule(folder, gguf_file=NAME, lora=lora)
    trained(module, stream(folder, tmp_path)).save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"a file of GGUF.*--merge-adapter"):
        export(tmp_path / "run.ckpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"model_type": "llama"}}, "asks for random ones"),
        ({"load_in_4bit": True, "lora": LoraSettings()}, "would be quantised once more"),
        ({"gguf_file": "other.gguf"}, "other.gguf"),
    ],
)
def test_what_does_not_go_with_such_a_file_is_refused(folder, change, said):
    with pytest.raises(MisconfigurationException, match=said):
        CausalLMModule(**{"model": folder, "gguf_file": NAME} | change)


def test_of_several_files_one_is_to_be_named(source, folder, tmp_path):
    save_gguf(source, tmp_path / "base" / "tiny.other.gguf")
    with pytest.raises(MisconfigurationException, match=r"2 files of GGUF.*name one"):
        load_tokenizer(folder)


def test_the_package_that_reads_it_is_named_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr("recall_lightning.models.gguf.find_spec", lambda name: None)
    monkeypatch.setattr("recall_lightning.data.tokenizers.find_spec", lambda name: None)
    with pytest.raises(MisconfigurationException, match=r"recall-lightning\[gguf\]"):
        CausalLMModule(folder, gguf_file=NAME)
    with pytest.raises(MisconfigurationException, match=r"recall-lightning\[gguf\]"):
        load_tokenizer(folder)
