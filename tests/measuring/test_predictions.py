import pytest
import torch
import transformers
from torch.nn import functional

from recall_lightning.measuring.predictions import (
    Predictions,
    logits_of,
    predicts_next_token,
)

FLOATS = torch.zeros(4, 8)
LABELS = torch.tensor([0, 1, 2, 0])


def sampled_loss(output, batch, module=None):
    return Predictions(module or torch.nn.Identity()).sampled_loss(output, batch)


def logits(*shape):
    return torch.randn(*shape, requires_grad=True)


def test_labels_are_drawn_from_the_models_own_predictions():
    outputs = torch.tensor([[0.0, 30.0, 0.0]] * 4, requires_grad=True)
    loss, count = sampled_loss(outputs, LABELS)
    assert count == 4
    torch.testing.assert_close(loss, 4 * functional.cross_entropy(outputs[:1], torch.tensor([1])))


def test_gradients_have_the_second_moments_of_the_fisher_information():
    """E[ggᵀ] = diag(p) − ppᵀ at the logits of a softmax."""
    torch.manual_seed(0)
    one = torch.tensor([0.5, -1.0, 0.2])
    outputs = one.repeat(20_000, 1).requires_grad_()
    loss, count = sampled_loss(outputs, torch.zeros(20_000, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, outputs)
    p = one.softmax(-1)
    expected = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(gradient.T @ gradient / count, expected, atol=0.01, rtol=0.05)


@pytest.mark.parametrize("shape", [(4, 2), (4, 1), (4,)])
def test_floating_point_targets_mean_a_squared_error(shape):
    torch.manual_seed(0)
    outputs = logits(*shape)
    draws = []
    for _ in range(2000):
        loss, count = sampled_loss(outputs, (torch.ones(4, 7), torch.zeros(shape)))
        draws.append(torch.autograd.grad(loss, outputs)[0].square().mean())
    assert count == 4
    assert float(torch.stack(draws).mean()) == pytest.approx(1.0, abs=0.05)


def counted(outputs, batch, module):
    """Which tokens have a gradient."""
    loss, count = sampled_loss(outputs, batch, module)
    (gradient,) = torch.autograd.grad(loss, outputs)
    has_gradient = gradient.abs().sum(-1) > 0
    assert int(has_gradient.sum()) == count
    return has_gradient.tolist()


def tiny(kind, **config):
    config = transformers.AutoConfig.for_model(kind, vocab_size=9, hidden_size=8, **config)
    return transformers.AutoModelForCausalLM.from_config(config)


def test_hidden_and_unlabelled_tokens_do_not_count():
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, 2, 3, -100]]),
    }
    llama = tiny("llama", intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    assert predicts_next_token(llama)
    assert counted(logits(1, 4, 5), batch, llama) == [[True, True, False, False]]
    assert counted(logits(1, 4, 5), batch, None) == [[False, True, True, False]]


def test_labels_of_a_tuple_are_masked_too():
    labels = torch.tensor([[1, 2, -100, -100]])
    found = counted(logits(1, 4, 5), (torch.zeros(1, 4, 8), labels), None)
    assert found == [[True, True, False, False]]


def test_an_encoders_mask_says_nothing_about_a_decoders_outputs():
    config = transformers.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    batch = {
        "attention_mask": torch.tensor([[1, 1, 0, 0]]),
        "labels": torch.tensor([[1, 2, 3, 1]]),
    }
    assert not predicts_next_token(model)
    assert counted(logits(1, 4, 9), batch, model) == [[True] * 4]


def test_an_encoder_without_a_head_does_not_predict_the_next_token():
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    assert not predicts_next_token(transformers.BertModel(config))


def test_float_targets_of_the_outputs_shape_win_over_integers_that_would_fit():
    outputs = logits(4, 3)
    loss, _ = sampled_loss(outputs, (FLOATS, torch.randn(4, 3), LABELS))
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient.sum(-1).abs().min() > 1e-4  # a softmax's would sum to 0


def test_inputs_are_no_targets_where_there_are_others():
    outputs = logits(4, 3)
    for batch in ((torch.randn(4, 3), LABELS), {"x": torch.randn(4, 3), "label": LABELS}):
        loss, _ = sampled_loss(outputs, batch)
        (gradient,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(4), atol=1e-5, rtol=0)


def test_masks_are_no_targets():
    batch = {"input_ids": torch.ones(2, 5).long(), "attention_mask": torch.ones(2, 5).long()}
    assert sampled_loss(logits(2, 5, 3), batch) is None


@pytest.mark.parametrize(
    "targets",
    [
        (),
        (torch.zeros(4, 8),),
        (torch.tensor([0, 1, 2, 3]),),
        (torch.tensor([True, False, True, False]),),
        (torch.zeros(3, dtype=torch.long),),
    ],
    ids=["none", "other floats", "a class too many", "booleans", "another number"],
)
def test_what_the_batch_does_not_tell_is_not_guessed(targets):
    assert sampled_loss(logits(4, 3), (torch.zeros(4, 8), *targets)) is None


def test_images_of_logits_are_not_guessed():
    batch = (torch.zeros(2, 1, 6, 6), torch.zeros(2, 6, 6, dtype=torch.long))
    assert sampled_loss(logits(2, 6, 6, 6), batch) is None


def test_outputs_without_gradient_tell_nothing():
    assert sampled_loss(torch.randn(4, 3), LABELS) is None


def test_outputs_that_are_not_finite_give_a_loss_that_is_not():
    outputs = torch.full((4, 3), torch.nan, requires_grad=True)
    loss, _ = sampled_loss(outputs, LABELS)
    assert not bool(loss.isfinite())


def test_logits_are_a_tensor_of_rows_or_named():
    rows = torch.zeros(2, 3)
    assert logits_of(rows) is rows
    assert logits_of({"logits": rows}) is rows
    assert logits_of({"loss": torch.tensor(1.0)}) is None
