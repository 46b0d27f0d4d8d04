"""Logits of predicted tokens alone are those of all tokens, at a fraction of their memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from recall_lightning.models import CausalLMModule
from recall_lightning.models.predicted_tokens import nats, predicted, predicted_logits
from recall_lightning.models.scoring import chosen

SIZES = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = SIZES | {"intermediate_size": 64}
GPT = {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
KINDS = {
    "llama": MLP,
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},  # a head with a bias
    "gemma2": MLP | {"head_dim": 16, "final_logit_softcapping": 0.1, "num_key_value_heads": 2},
    "cohere": MLP | {"logit_scale": 0.3},
    "granite": MLP | {"logits_scaling": 7.0},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "bloom": {"vocab_size": 48, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


class LargestTensor(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(made) if torch.is_tensor(t)]
        self.bytes = max([self.bytes, *sizes])
        return made


def batch(rows=3, length=12, vocabulary=48):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, vocabulary, (rows, length), generator=generator)
    labels = torch.full_like(ids, -100)
    for row in range(rows):
        labels[row, length - 2 - row % 4 : length - row % 3] = 5 + row
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def model(kind, **config):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **KINDS[kind] | config, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def check(run, head):
    inputs, labels = batch()
    everything = run(**inputs).logits
    places = predicted(labels)
    found, targets = predicted_logits(run, inputs, labels, head)
    torch.testing.assert_close(found, everything[places], rtol=1e-5, atol=1e-6)
    assert torch.equal(targets, labels[:, 1:][labels[:, 1:] != -100])
    given = []
    hook = head.register_forward_hook(lambda _, args, output: given.append(output.shape[:-1]))
    predicted_logits(run, inputs, labels, head)
    hook.remove()
    return given


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_model_and_no_others_are_computed(kind):
    net = model(kind)
    _, labels = batch()
    assert check(net, net.get_output_embeddings()) == [(1, int(predicted(labels).sum()))]


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_a_head_with_an_adapter_is_one_too(lora):
    import peft

    options = {"target_modules": ["q_proj"]} | lora
    net = peft.get_peft_model(model("llama"), peft.LoraConfig(r=2, **options)).eval()
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    assert check(net, net.get_output_embeddings()) == [(1, 6)]


class Positional(torch.nn.Module):
    """Does something to its logits that depends on where they stand."""

    def __init__(self):
        super().__init__()
        self.net = model("llama")

    def forward(self, **inputs):
        output = self.net(**inputs)
        output.logits = output.logits * torch.arange(1, output.logits.shape[1] + 1)[:, None]
        return output


def test_a_model_whose_logits_depend_on_their_place_computes_all_of_them_row_by_row():
    net = Positional()
    assert check(net, net.net.lm_head) == [(1, 12)] * 3


def test_a_head_that_is_not_called_is_none():
    net, other = model("llama"), torch.nn.Linear(32, 48)
    inputs, labels = batch()
    with torch.no_grad():
        expected = net(**inputs).logits[predicted(labels)]
        found, _ = predicted_logits(net, inputs, labels, other)
    torch.testing.assert_close(found, expected)


def test_a_compiled_model_is_scored_like_another():
    inputs, labels = batch()
    module = CausalLMModule({"model_type": "llama", **KINDS["llama"]}).eval()
    with torch.no_grad():
        expected = module(**inputs).logits[predicted(labels)]
        module.model.compile(backend="eager")
        module(**inputs)
        for _ in range(2):
            found, _ = predicted_logits(module, inputs, labels, module._head)
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(module(**inputs).logits[predicted(labels)], expected)


def test_nats_are_those_of_all_logits_at_once_and_so_are_gradients(monkeypatch):
    logits = torch.randn(50, 9, dtype=torch.double).float().requires_grad_()
    targets, weights = torch.randint(9, (50,)), torch.randn(50)
    results = []
    for entries in (2**24, 64):
        monkeypatch.setattr("recall_lightning.models.predicted_tokens._ENTRIES", entries)
        each = nats(logits, targets)
        results.append((each, torch.autograd.grad((each * weights).sum(), logits)[0]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


VOCABULARY, ROWS, LENGTH, ANSWER = 4096, 32, 64, 4


def questions():
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = 5
    choices = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    counts, sizes = torch.full((ROWS // 4,), 4), torch.ones(ROWS)
    return {"choices": choices, "counts": counts, "bytes": sizes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_take_the_memory_of_their_answers_logits(dtype):
    net = model("llama", vocab_size=VOCABULARY).to(dtype)
    with LargestTensor() as largest:
        chosen(net, questions(), "tokens", net.lm_head)
    of_answers = ROWS * ANSWER * VOCABULARY * 4  # once in float32
    assert largest.bytes <= of_answers < ROWS * LENGTH * VOCABULARY * dtype.itemsize / 4


def test_without_a_head_choices_take_the_memory_of_one_row():
    net = model("llama", vocab_size=VOCABULARY)
    with LargestTensor() as largest:
        chosen(net, questions(), "tokens")
    assert largest.bytes <= max(ROWS * ANSWER, LENGTH) * VOCABULARY * 4


def module_batch():
    asked = questions()
    return {**asked["choices"]}


def test_validation_holds_no_logits_of_what_is_not_predicted(tmp_path):
    module = CausalLMModule({"model_type": "llama", **KINDS["llama"], "vocab_size": VOCABULARY})
    module.eval().val_metrics.update_and_log = lambda *_: None
    with LargestTensor() as largest, torch.no_grad():
        module.validation_step(module_batch(), 0)
    assert largest.bytes <= max(ROWS * ANSWER, LENGTH) * VOCABULARY * 4


def test_training_holds_logits_of_all_tokens_in_the_models_own_dtype_alone():
    module = CausalLMModule({"model_type": "llama", **KINDS["llama"], "vocab_size": VOCABULARY})
    module.bfloat16()
    with LargestTensor() as largest:
        module.training_step(module_batch(), 0).backward()
    assert largest.bytes <= ROWS * LENGTH * VOCABULARY * torch.bfloat16.itemsize
