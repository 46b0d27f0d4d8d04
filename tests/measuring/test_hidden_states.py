import pytest
import torch
import transformers
from torch import nn

from recall_lightning.measuring.blocks import find_blocks
from recall_lightning.measuring.hidden_states import hidden_states


def call(module, batch):
    return module(**batch)


def llama(layers=3):
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def padded(tokens, side, length=9):
    pad = [0] * (length - len(tokens))
    ids = tokens + pad if side == "right" else pad + tokens
    mask = [1] * len(tokens) + pad if side == "right" else pad + [1] * len(tokens)
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])}


def test_states_are_the_means_over_tokens_of_what_the_blocks_put_out():
    model = llama().eval()
    batch = {"input_ids": torch.randint(0, 20, (4, 6))}
    # the last layer's own output comes before the final norm, which this list has applied
    expected = model(**batch, output_hidden_states=True).hidden_states[1:-1]
    states = list(hidden_states(model, find_blocks(model), [batch], call).values())
    for state, hidden in zip(states, expected, strict=False):
        torch.testing.assert_close(state, hidden.mean(dim=1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side):
    model, tokens = llama(), [3, 7, 11, 2, 5]
    bare = hidden_states(model, find_blocks(model), [{"input_ids": torch.tensor([tokens])}], call)
    states = hidden_states(model, find_blocks(model), [padded(tokens, side)], call)
    for name in bare:
        torch.testing.assert_close(states[name], bare[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("fast_path", [True, False])
def test_torch_layers_are_pooled_by_their_own_padding_mask(batch_first, fast_path):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=fast_path and batch_first)
    inputs, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    inputs[1, 3:] = 1e6

    def forward(module, batch):
        inputs, padding = batch
        module(inputs if batch_first else inputs.transpose(0, 1), src_key_padding_mask=padding)

    together = hidden_states(model, find_blocks(model), [(inputs, padding)], forward)
    short = (inputs[1:2, :3], padding[1:2, :3])
    alone = hidden_states(model, find_blocks(model), [short], forward)
    for name in alone:
        torch.testing.assert_close(together[name][1], alone[name][0], rtol=1e-4, atol=1e-5)


def test_an_encoder_decoders_two_stacks_are_pooled_by_their_own_masks():
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_ff=8, d_kv=4, num_layers=2, num_heads=2, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    blocks = find_blocks(model)
    tokens, labels = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8]])
    bare = hidden_states(model, blocks, [{"input_ids": tokens, "labels": labels}], call)
    padded_batch = {
        "input_ids": nn.functional.pad(tokens, (0, 2)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "labels": nn.functional.pad(labels, (0, 4), value=-100),
    }
    states = hidden_states(model, blocks, [padded_batch], call)
    for name in bare:
        torch.testing.assert_close(states[name], bare[name], rtol=1e-4, atol=1e-5)


def test_images_are_pooled_by_global_average():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    images = torch.randn(5, 1, 8, 8)
    states = hidden_states(model, find_blocks(model), [images], lambda m, b: m(b))
    torch.testing.assert_close(states["2"], model(images).mean(dim=(2, 3)))


def test_samples_keep_the_order_of_the_batches():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    inputs = torch.randn(6, 2)
    whole = hidden_states(model, find_blocks(model), [inputs], lambda m, b: m(b))
    parts = hidden_states(model, find_blocks(model), inputs.split(4), lambda m, b: m(b))
    torch.testing.assert_close(parts["1"], whole["1"])


def test_a_compiled_model_is_measured_too():
    model = nn.ModuleDict({"net": llama(2)})
    batch = {"input_ids": torch.randint(0, 20, (2, 6))}
    plain = hidden_states(model, find_blocks(model), [batch], lambda m, b: m["net"](**b))
    model["net"] = torch.compile(model["net"], backend="eager")
    model["net"](**batch)  # compiled before the probe's hooks exist
    states = hidden_states(model, find_blocks(model), [batch], lambda m, b: m["net"](**b))
    for name in plain:
        torch.testing.assert_close(states[name], plain[name])


def test_errors_name_the_block():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    blocks = find_blocks(model)
    with pytest.raises(ValueError, match=r"block.* 1 computed nothing"):
        hidden_states(model, blocks, [torch.ones(3, 2)], lambda m, b: m[0](b))
    with pytest.raises(ValueError, match="put out 2 rows for a batch of 3"):
        hidden_states(model, blocks, [torch.ones(3, 2)], lambda m, b: m(b[:2]))


@pytest.mark.parametrize(
    ("block", "inputs", "hidden"),
    [
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU()), (8, 4, 20), 6),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), (8, 5, 7, 4), 6),
        (lambda: nn.Sequential(nn.LSTM(4, 6, batch_first=True)), (8, 5, 4), 6),
    ],
    ids=["channels first", "channels last", "recurrent"],
)
def test_hidden_units_are_told_from_positions(block, inputs, hidden):
    model = block()
    states = hidden_states(model, find_blocks(model), [torch.randn(inputs)], lambda m, b: m(b))
    assert {tuple(state.shape) for state in states.values()} == {(8, hidden)}


def test_packed_sequences_are_averaged_over_their_own_length():
    model = nn.LSTM(2, 3, batch_first=True)
    inputs, lengths = torch.randn(2, 4, 2), torch.tensor([4, 2])

    def packed(module, batch):
        module(nn.utils.rnn.pack_padded_sequence(batch[0], batch[1], batch_first=True))

    blocks = find_blocks(nn.ModuleDict({"rnn": model}))
    together = hidden_states(nn.ModuleDict({"rnn": model}), blocks, [(inputs, lengths)],
                             lambda m, b: packed(m["rnn"], b))  # fmt: skip
    torch.testing.assert_close(together["rnn"][1], model(inputs[1:, :2])[0][0].mean(dim=0))


def test_several_rows_a_sample_are_averaged():
    model = nn.Sequential(nn.Linear(2, 3))
    frames = torch.randn(4, 5, 2)
    states = hidden_states(model, find_blocks(model), [frames], lambda m, b: m(b.flatten(0, 1)))
    torch.testing.assert_close(states["0"], model(frames).mean(dim=1))


def test_complex_states_are_their_real_and_imaginary_parts():
    class Fourier(nn.Linear):
        def forward(self, inputs):
            return torch.fft.fft(super().forward(inputs))

    model, inputs = nn.Sequential(Fourier(2, 3)), torch.randn(4, 5, 2)
    expected = model(inputs).mean(dim=1)
    states = hidden_states(model, find_blocks(model), [inputs])
    torch.testing.assert_close(states["0"], torch.cat([expected.real, expected.imag], dim=1))
