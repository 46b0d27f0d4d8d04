import pytest
import transformers
from torch import nn

from recall_lightning.measuring.architecture import (
    find_generator,
    is_encoder_decoder,
    predicts_next_token,
)
from tests.support.tiny_transformers import tiny_bert, tiny_llama, tiny_t5


class Wrapped(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def two_in_one():
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny_bert().config, tiny_bert(is_decoder=True, add_cross_attention=True).config
    )
    return transformers.EncoderDecoderModel(config)


@pytest.mark.parametrize(
    ("build", "two_stacks", "causal"),
    [
        (tiny_llama, False, True),
        (tiny_t5, True, False),
        (tiny_bert, False, False),
        (two_in_one, True, False),
        (lambda: nn.Transformer(8, 2, 1, 1), True, False),
        (lambda: nn.Linear(2, 2), False, False),
        (lambda: Wrapped(text_encoder=nn.Linear(2, 2), text_decoder=nn.Linear(2, 2)), True, False),
        (lambda: Wrapped(encoder=nn.Identity(), decoder=nn.Linear(2, 2)), False, False),
        (lambda: Wrapped(encoder=tiny_bert(), decoder=nn.Linear(2, 2)), True, False),
        (lambda: Wrapped(image_encoder=nn.Linear(2, 2), decoder=tiny_llama()), False, True),
    ],
    ids=["llama", "t5", "bert", "encoder-decoder of two", "torch", "linear", "own", "no encoder",
         "own on bert", "language model that sees"],
)  # fmt: skip
def test_the_same_kind_is_found_with_and_without_a_module_around(build, two_stacks, causal):
    for module in (build(), Wrapped(model=build())):
        assert is_encoder_decoder(module) is two_stacks
        assert predicts_next_token(module) is causal


def test_an_encoder_without_a_head_does_not_predict_the_next_token():
    assert not predicts_next_token(tiny_bert().bert)


def test_a_generator_is_the_outermost_causal_language_model():
    model = tiny_llama()
    assert find_generator(Wrapped(inner=model)) is model
    assert find_generator(model.model) is None  # without a head
    assert find_generator(two_in_one()) is None  # its decoder alone could
