from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.models import CausalLMModule
from recall_lightning.models.generation import answer_in, ends_of_generation, room_to_write
from recall_lightning.models.lora import LoraSettings
from tests.support.subword_tokenizers import subword_tokenizer

TINY = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def model(eos=None, positions=None):
    return SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=eos),
        config=SimpleNamespace(max_position_embeddings=positions),
    )


@pytest.mark.parametrize(
    ("own", "trained", "ends"),
    [(None, 5, [5]), (2, 2, [2]), (2, 5, [2, 5]), ([2, 3], 2, [2, 3]), ([3, 2], None, [2, 3])],
)
def test_a_model_stops_where_it_says_and_where_answers_were_trained_to_end(own, trained, ends):
    assert ends_of_generation(model(own), trained) == ends


def test_a_model_writes_no_further_than_it_has_positions():
    prompts = {"input_ids": torch.zeros(1, 10, dtype=torch.long)}
    assert room_to_write(model(), prompts, 50) == room_to_write(model(positions=60), prompts, 50)
    with pytest.warns(UserWarning, match="leaves 5 of the model's 15 positions"):
        assert room_to_write(model(positions=15), prompts, 50) == 5
    with pytest.raises(MisconfigurationException, match="lower max_length"):
        room_to_write(model(positions=10), prompts, 50)


@pytest.mark.parametrize(
    ("text", "lead", "end", "answer"),
    [
        (" Paris ", "", "", "Paris"),
        (" Paris", " ", "", "Paris"),
        ("capital", "capi", "", "tal"),
        ("<think>\n\n</think>\n\nParis", "<think>\n\n</think>\n\n", "", "Paris"),
        ("Paris\n### End\n### user: and", "", "\n### End", "Paris"),
    ],
)
def test_an_answer_is_what_stands_between_what_the_format_writes(text, lead, end, answer):
    assert answer_in(text, lead, end) == answer


class Writes:
    """Stands in for a model that writes the same tokens behind every prompt."""

    def __init__(self, eos, written):
        self.generation_config = SimpleNamespace(eos_token_id=eos)
        self.config = SimpleNamespace()
        self.written = written

    def generate(self, input_ids, eos_token_id, **_):
        self.stops_at = eos_token_id
        written = torch.tensor(self.written).expand(len(input_ids), -1)
        return torch.cat([input_ids, written], dim=1)


def test_answers_end_at_the_first_end_whatever_is_behind_it(monkeypatch):
    tokenizer = subword_tokenizer("byte_bpe")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    written = tokenizer("Paris", add_special_tokens=False)["input_ids"]
    behind = tokenizer(" and Lima", add_special_tokens=False)["input_ids"]
    module = CausalLMModule(TINY)
    monkeypatch.setattr(module, "_tokenizer", lambda: tokenizer)
    prompts = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    asked = {"prompts": prompts, "max_new_tokens": 9, "no_answer": ""}
    for own, trained in (
        (end, tokenizer.eos_token_id),
        ([7, end], tokenizer.eos_token_id),
        (7, end),
    ):
        model = Writes(own, [*written, end, *behind])
        monkeypatch.setitem(module._modules, "model", model)
        assert module.answers(asked | {"end_token": trained}) == ["Paris", "Paris"]
        assert {end, trained} <= set(model.stops_at)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, target_modules="all-linear")])
def test_answers_are_the_most_likely_whatever_the_generation_config_adds(lora, monkeypatch):
    tokenizer = subword_tokenizer("byte_bpe")
    module = CausalLMModule(TINY | {"vocab_size": len(tokenizer)}, lora=lora).eval()
    for parameter in module.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    monkeypatch.setattr(module, "_tokenizer", lambda: tokenizer)
    ids = torch.tensor([tokenizer("the capital of France is the capital")["input_ids"]])
    prompts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked = {"prompts": prompts, "max_new_tokens": 6, "no_answer": ""}
    greedy = ids
    for _ in range(6):
        greedy = torch.cat([greedy, module(greedy).logits[:, -1:].argmax(-1)], dim=1)
    expected = tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True).strip()
    own = module.model.generation_config
    own.repetition_penalty, own.num_beams, own.suppress_tokens = 9.0, 3, greedy[0, -6:].tolist()
    own.return_dict_in_generate, own.stop_strings = True, ["a"]
    assert module.answers(asked) == [expected]
    assert module.model.generation_config is own


RECURRENT = {
    "model_type": "recurrent_gemma",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "lru_width": 16,
    "attention_window_size": 8,
}


SHORT = TINY | {"max_position_embeddings": 14}


@pytest.mark.parametrize("sizes", [TINY, RECURRENT, SHORT], ids=["attention", "recurrent", "short"])
def test_answers_do_not_depend_on_the_prompts_beside_them(sizes, monkeypatch):
    tokenizer = subword_tokenizer("byte_bpe")
    torch.manual_seed(0)
    module = CausalLMModule(sizes | {"vocab_size": len(tokenizer)}).eval()
    for parameter in module.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    monkeypatch.setattr(module, "_tokenizer", lambda: tokenizer)
    asked = ["Paris", "the capital of France is Paris, and that of Peru", "What is the"]

    def answers(texts):
        prompts = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        prompts = {name: prompts[name] for name in ("input_ids", "attention_mask")}
        return module.answers({"prompts": prompts, "max_new_tokens": 6, "no_answer": ""})

    assert answers(asked) == [answers([text])[0] for text in asked]
