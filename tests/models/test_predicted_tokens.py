"""Logits of predicted tokens alone are those of all tokens, at a fraction of their memory."""

from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
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


def peak(function, *arguments):
    """Return the most bytes that were held at once beyond those before, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function(*arguments)
    events = profiled.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes), default=0)


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


ROWS, ANSWER = 32, 4  # 8 questions of four choices
VOCABULARY = 152064  # of Qwen2


def narrow(vocabulary=VOCABULARY, dtype="bfloat16"):
    torch.manual_seed(0)
    fields = MLP | {"vocab_size": vocabulary, "hidden_size": 8, "intermediate_size": 8}
    module = CausalLMModule({"model_type": "llama", **fields, "num_attention_heads": 1})
    return module.to(getattr(torch, dtype)).eval()


def questions(length):
    ids = torch.zeros(ROWS, length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = 5
    choices = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    counts, sizes = torch.full((ROWS // 4,), 4), torch.ones(ROWS)
    return {"choices": choices, "counts": counts, "bytes": sizes}


LOGITS = ROWS * ANSWER * VOCABULARY * 2  # of all answers, in bfloat16
IN_FLOAT32 = 2 * 2**26  # what is converted at a time, and its logarithms


@pytest.mark.parametrize("length", [8, 32])
def test_choices_take_the_memory_of_their_answers_logits_whatever_the_prompts_length(length):
    module = narrow()
    asked = questions(length)
    chosen(module, asked, "tokens", module._head)  # which tries the head on one row
    most = peak(chosen, module, asked, "tokens", module._head)
    assert LOGITS < most < LOGITS + IN_FLOAT32 + 2**24
    if length == 32:
        assert most < ROWS * length * VOCABULARY * 2 * 0.6  # of all tokens, in bfloat16 alone


def test_without_a_head_choices_take_the_memory_of_one_row_more():
    module, asked = narrow(), questions(32)
    most = peak(chosen, module, asked, "tokens")
    assert most < 2 * LOGITS + IN_FLOAT32 + 2 * 32 * VOCABULARY * 2 + 2**24


def test_validation_takes_the_memory_of_predicted_tokens_logits():
    module = narrow()
    module.val_metrics.update_and_log = lambda *_: None
    rows = questions(32)["choices"]
    with torch.no_grad():
        module.validation_step(rows, 0)
        assert peak(module.validation_step, rows, 0) < LOGITS + IN_FLOAT32 + 2**24


def test_training_holds_logits_of_all_tokens_and_their_gradient_in_the_models_own_dtype():
    length, vocabulary = 128, 4096
    module, rows = narrow(vocabulary), questions(length)["choices"]
    everything = ROWS * length * vocabulary * 2
    answers = ROWS * ANSWER * vocabulary * (2 + 4 + 4 + 4)

    def step():
        module.training_step(rows, 0).backward()

    step()  # which leaves gradients
    others = 2**22  # of a narrow model's layers
    assert peak(step) < 2 * everything + answers + others
    module.zero_grad()

    def of_transformers():
        module(**rows).loss.backward()

    assert peak(of_transformers) > 4 * everything
