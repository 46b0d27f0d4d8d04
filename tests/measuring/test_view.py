from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import nn

from recall_lightning.measuring.blocks import find_blocks
from recall_lightning.measuring.hidden_states import hidden_states
from recall_lightning.measuring.view import (
    CausalView,
    EncoderDecoderView,
    ModelView,
    given_by_name,
    view_of,
)
from tests.support.tiny_transformers import tiny_bert, tiny_llama, tiny_t5

MASK = torch.tensor([[1, 1, 0]])
TWO = EncoderDecoderView()


def test_each_kind_of_model_has_its_view():
    kinds = [
        type(view_of(model)) for model in (nn.Linear(2, 2), tiny_llama(), tiny_t5(), tiny_bert())
    ]
    assert kinds == [ModelView, CausalView, EncoderDecoderView, ModelView]


def test_a_users_own_view_is_taken_as_it_is():
    own = EncoderDecoderView()
    assert view_of(tiny_llama(), own) is own


def test_a_function_changes_only_how_a_model_is_run():
    view = view_of(tiny_t5(), lambda module, batch: (module, batch))
    assert isinstance(view, EncoderDecoderView)
    assert view.forward(1, 2) == (1, 2)


def test_a_view_run_otherwise_is_another_one():
    class Own(ModelView):
        def forward(self, module, batch):
            return "own"

        def targets(self, batch):
            return ["targets"]

    own = Own()
    other = own.with_forward(lambda module, batch: "other")
    assert (own.forward(None, None), other.forward(None, None)) == ("own", "other")
    assert other.targets(None) == ["targets"]


def test_hidden_states_are_measured_as_a_view_says():
    class Half(ModelView):
        def forward(self, module, batch):
            return module(batch["x"])

        def mask(self, batch, module_name):
            return batch["real"]

    model, inputs = nn.Sequential(nn.Linear(2, 3)), torch.randn(4, 5, 2)
    real = torch.arange(5).expand(4, 5) < 2
    states = hidden_states(model, find_blocks(model), [{"x": inputs, "real": real}], Half())
    torch.testing.assert_close(states["0"], model(inputs[:, :2]).mean(dim=1))


def test_the_mask_is_found_in_a_mapping_or_in_a_pair_that_holds_one():
    for batch in ({"attention_mask": MASK}, ({"attention_mask": MASK}, torch.zeros(1))):
        assert ModelView().mask(batch, "layer").tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    "batch", [torch.zeros(1, 3), {"input_ids": MASK}, [], {"attention_mask": [[1, 1, 0]]}]
)
def test_where_there_is_no_mask_there_is_none(batch):
    assert ModelView().mask(batch, "layer") is None


def test_a_decoder_has_its_own_mask_or_its_labels():
    batch = {"attention_mask": MASK, "labels": torch.tensor([[5, -100]])}
    assert TWO.mask(batch, "model.encoder.0").tolist() == [[True, True, False]]
    assert TWO.mask(batch, "model.decoder.0").tolist() == [[True, False]]
    batch["decoder_attention_mask"] = torch.tensor([[0, 1]])
    assert TWO.mask(batch, "model.decoder.0").tolist() == [[False, True]]


@pytest.mark.parametrize("labels", [[[5, -100]], [[5], [1, 2]], ["a text"], torch.zeros(1, 2)])
def test_labels_that_are_no_tensor_of_tokens_mask_nothing_in_a_decoder(labels):
    batch = {"attention_mask": MASK, "labels": labels}
    assert TWO.mask(batch, "decoder") is None
    assert TWO.counts(batch, torch.zeros(1, 2)).all()


def test_an_encoders_padding_is_no_decoders():
    assert TWO.mask({"attention_mask": MASK}, "decoder") is None


def test_a_masked_language_models_head_that_is_called_decoder_has_the_models_mask():
    view = view_of(tiny_bert())
    batch = {"attention_mask": MASK, "labels": torch.tensor([[-100, 5, -100]])}
    assert view.mask(batch, "cls.predictions.decoder").tolist() == [[True, True, False]]


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, Y), [Y]),
        ((X, Y, X), [Y, X]),
        ([{"x": X, "label": Y}], [Y]),
        ({"x": X, "label": Y}, [Y]),
        ({"x": X, "labels": Y, "y": X}, [Y, X]),
        ({"x": X, "attention_mask": Y, "input_ids": Y}, [X]),
        ({"labels": ["a text"], "x": X}, []),
        (X, [X]),
        ("text", []),
    ],
)
def test_targets_are_named_or_behind_the_inputs(batch, expected):
    found = ModelView().targets(batch)
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


def test_what_predicts_the_next_token_has_its_inputs_as_targets():
    batch = {"input_ids": Y, "attention_mask": Y}
    assert CausalView().targets(batch)[0] is Y
    assert ModelView().targets(batch) == []


def test_logits_are_the_output_or_named_in_it():
    rows = torch.zeros(2, 3)
    output = transformers.modeling_outputs.CausalLMOutput(logits=rows)
    assert all(ModelView().logits(one) is rows for one in (rows, {"logits": rows}, output))
    assert ModelView().logits(torch.zeros(4)).shape == (4, 1)


@pytest.mark.parametrize(
    "output",
    [torch.tensor(1.0), {"loss": torch.tensor(1.0)}, None, "text", torch.zeros(2, 3) + 1j],
    ids=["a loss", "a loss by name", "nothing", "text", "complex"],
)
def test_other_outputs_hold_no_logits(output):
    assert ModelView().logits(output) is None


LIKE = torch.zeros(1, 4)
LABELS = torch.tensor([[-100, 2, 3, -100]])


def test_hidden_and_unlabelled_tokens_do_not_count():
    batch = {"attention_mask": torch.tensor([[1, 1, 0, 1]]), "labels": LABELS}
    assert ModelView().counts(batch, LIKE).tolist() == [[False, True, False, False]]
    assert CausalView().counts(batch, LIKE).tolist() == [[True, True, False, False]]


def test_labels_of_a_tuple_are_masked_too():
    for inputs in (X, {"attention_mask": torch.tensor([[1, 1, 0, 1]])}):
        found = ModelView().counts((inputs, LABELS), LIKE)
        assert found.tolist() == [[False, True, inputs is X, False]]


def test_labels_in_a_column_are_those_of_samples():
    assert ModelView().counts((X, LABELS.T), torch.zeros(4)).tolist() == [False, True, True, False]


def test_an_encoders_mask_says_nothing_about_a_decoders_outputs():
    batch = {"attention_mask": torch.tensor([[1, 1, 0, 0]]), "labels": LABELS.abs()}
    assert TWO.counts(batch, LIKE).all()
    batch["decoder_attention_mask"] = torch.tensor([[1, 0, 0, 0]])
    assert TWO.counts(batch, LIKE).tolist() == [[True, False, False, False]]


def test_a_real_number_of_minus_100_counts():
    assert ModelView().counts((X, torch.full((4,), -100.0)), torch.zeros(4)).all()


def test_a_causal_language_model_generates_and_a_decoder_of_two_stacks_does_not():
    llama = tiny_llama()
    assert view_of(llama).generator(llama) is llama
    assert view_of(tiny_t5()).generator(tiny_t5()) is None
    assert view_of(nn.Linear(2, 2)).generator(nn.Linear(2, 2)) is None


def test_a_tokenizers_batch_gives_by_name():
    batch = transformers.BatchEncoding({"input_ids": MASK})
    assert given_by_name(batch)["input_ids"] is MASK
    assert given_by_name(([], batch))["input_ids"] is MASK


def test_targets_and_masks_of_fields_and_attributes_are_found_by_name():
    @dataclass
    class Fields:
        labels: torch.Tensor
        attention_mask: torch.Tensor

    class Graph:
        y = torch.ones(3)
        x = torch.zeros(3, 2)

    fields = Fields(torch.ones(2, 4), torch.tensor([[1, 0]]))
    assert ModelView().targets(fields) == [fields.labels]
    assert ModelView().mask(fields, "").tolist() == [[True, False]]
    assert ModelView().targets(Graph()) == [Graph.y]
