"""Whether packed examples see each other is found out on the model, before it trains."""

import json
from functools import partial

import peft
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

from recall_lightning.data import InstructionStream, InstructionTask, Template
from recall_lightning.data.instructions.collating import collate_packed
from recall_lightning.data.instructions.encoding import Encoded
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from recall_lightning.models.packing import packing_fault
from tests.support.tiny_language_model import save_tokenizer

SIZES = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2}
STATES = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2}
APART = {
    "llama": MLP,
    "mistral": MLP | {"sliding_window": 8},
    "gemma3_text": MLP | {"head_dim": 16, "sliding_window": 8},
    "gpt2": {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mixtral": MLP | {"num_local_experts": 4},
}
SEEING = {
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 258, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": SIZES | {"alibi": True},
    "mpt": {"vocab_size": 258, "d_model": 32, "n_layers": 2, "n_heads": 2},
    "mamba": STATES | {"state_size": 4},
    "rwkv": STATES | {"attention_hidden_size": 32},
    "lfm2": MLP | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
    "recurrent_gemma": MLP
    | {"lru_width": 32, "attention_window_size": 64, "block_types": ["recurrent", "attention"]},
}
TOKENS = range(4, 258)


def model(kind, attention=None, **changes):
    torch.manual_seed(0)
    fields = {**APART, **SEEING}[kind] | changes
    config = AutoConfig.for_model(kind, **fields, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    options = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config, **options)


def fault(net, length=48):
    return packing_fault(net, TOKENS, length, partial(net, use_cache=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", APART)
def test_a_model_that_goes_by_positions_keeps_examples_apart(kind, attention, dtype):
    assert fault(model(kind, attention).to(dtype)) is None


def test_rows_may_be_far_longer_than_a_sliding_window():
    assert fault(model("mistral"), length=400) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SEEING)
def test_a_model_in_which_examples_see_each_other_is_found(kind, dtype):
    found = fault(model(kind).to(dtype))
    assert found.startswith(("its examples see each other", "it cannot run them"))


@pytest.mark.parametrize("silent", ["lm_head", "out_proj"])
def test_what_they_see_is_found_behind_weights_that_are_still_zero(silent):
    net = model("mamba", tie_word_embeddings=False)
    for name, weight in net.named_parameters():
        if silent in name:
            torch.nn.init.zeros_(weight)
    assert fault(net) == "its examples see each other"


def test_a_model_that_passes_nothing_on_shows_nothing():
    net = model("llama")
    for weight in net.parameters():
        torch.nn.init.zeros_(weight)
    assert "no token sees an earlier one" in fault(net)


def test_a_model_of_nan_shows_nothing():
    net = model("llama")
    torch.nn.init.constant_(net.model.norm.weight, torch.nan)
    assert "no numbers" in fault(net)


def test_wrong_positions_are_found_though_nothing_is_seen():
    net = model("gpt2")

    def count_on(_, args):
        return (torch.arange(args[0].shape[-1])[None],)

    net.transformer.wpe.register_forward_pre_hook(count_on)
    assert "its positions are others" in fault(net)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_far_below_rounding_is_found(dtype):
    net = model("llama").to(dtype)

    def leak(_, args):
        return (args[0] + 1e-3 * args[0].cumsum(dim=1),)

    net.model.layers[1].mlp.down_proj.register_forward_pre_hook(leak)
    assert fault(net) == "its examples see each other"


def test_an_adapter_hides_nothing():
    assert fault(peft.get_peft_model(model("gpt2"), peft.LoraConfig(r=2))) is None
    seeing = peft.get_peft_model(model("bloom"), peft.LoraConfig(r=2))
    assert fault(seeing) == "its examples see each other"


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_no_trace_is_left(kind):
    net = model(kind).train()
    net.get_input_embeddings().eval()
    modes = [part.training for part in net.modules()]
    before = {
        name: value.clone() for name, value in [*net.state_dict().items(), *net.named_buffers()]
    }
    state = torch.get_rng_state()
    fault(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in net.modules()] == modes
    after = dict([*net.state_dict().items(), *net.named_buffers()])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(part._forward_pre_hooks for part in net.modules())
    assert all(weight.grad is None for weight in net.parameters())


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path, pad=True)
    rows = [{"q": f"what is {n}?", "a": f"number {n}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def fit(folder, kind, module=None, pack=True, precision="32-true", **kwargs):
    rows = str(folder / "rows.jsonl")
    task = InstructionTask("one", Template("{q}", "{a}", score="exact_match"), rows, rows)
    data = InstructionStream([task], str(folder), max_length=48, pack=pack, batch_size=2)
    if module is None:
        model(kind).save_pretrained(folder / kind)
        module = CausalLMModule(str(folder / kind), **kwargs)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        reload_dataloaders_every_n_epochs=1,
        precision=precision,
    )
    trainer.fit(module, datamodule=data)
    return trainer.global_step


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, target_modules="all-linear")])
def test_packed_training_starts_where_it_is_proved(folder, lora, precision):
    assert fit(folder, "llama", lora=lora, precision=precision) > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["opt", "bloom"])
def test_packed_training_is_refused_elsewhere_and_what_to_do_is_said(folder, kind, precision):
    said = f"cannot be packed for this {kind} .*: its examples see each other. Set pack=False"
    with pytest.raises(MisconfigurationException, match=said):
        fit(folder, kind, precision=precision)
    assert fit(folder, kind, pack=False) > 0


def test_a_module_that_proves_nothing_is_told_so(folder):
    class Own(CausalLMModule):
        proves_packing = False

    model("llama").save_pretrained(folder / "llama")
    with pytest.warns(UserWarning, match="pack=True: Own has to hand position_ids to a model"):
        fit(folder, "llama", module=Own(str(folder / "llama")))


def test_packed_batches_of_any_loader_are_tried_before_the_first_step(folder):
    model("bloom").save_pretrained(folder / "bloom")
    module = CausalLMModule(str(folder / "bloom"))
    groups = [[Encoded((5, 6, 7, 8), 2), Encoded((9, 10, 11), 1)]] * 2
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", max_epochs=1)
    with pytest.raises(MisconfigurationException, match="cannot be packed"):
        trainer.fit(module, DataLoader(groups, collate_fn=partial(collate_packed, pad=0)))
    assert trainer.global_step == 0
