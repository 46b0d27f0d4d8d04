import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning.measuring.blocks import find_blocks
from recall_lightning.models import MLP, ClassifierModule


def test_it_is_linear_maps_of_the_flattened_input_with_an_activation_between() -> None:
    model = MLP([6, 5, 4, 3], activation=nn.Tanh)
    inputs = torch.randn(2, 1, 2, 3)
    by_hand = inputs.reshape(2, 6)
    first, second, last = [layer for layer in model if isinstance(layer, nn.Linear)]
    by_hand = (by_hand @ first.weight.T + first.bias).tanh()
    by_hand = (by_hand @ second.weight.T + second.bias).tanh()
    assert torch.allclose(model(inputs), by_hand @ last.weight.T + last.bias, atol=1e-6)


def test_two_sizes_are_a_linear_model() -> None:
    assert [type(layer) for layer in MLP([6, 3])] == [nn.Flatten, nn.Linear]


def test_every_layer_is_a_block_that_is_measured_after_its_activation() -> None:
    blocks = find_blocks(ClassifierModule(MLP([8, 4, 4, 2]), num_classes=2))
    assert [(block.name, block.output) for block in blocks] == [
        ("model.hidden_1", "model.activation_1"),
        ("model.hidden_2", "model.activation_2"),
        ("model.output", "model.output"),
    ]
    assert [block.parameters for block in blocks] == [36, 20, 10]


@pytest.mark.parametrize("sizes", [[], [4], [4, 0, 2]])
def test_bad_sizes(sizes: list[int]) -> None:
    with pytest.raises(MisconfigurationException, match="sizes="):
        MLP(sizes)


@pytest.mark.parametrize("name", ["MLP", "recall_lightning.models.MLP"])
def test_command_line_builds_it(name: str, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["recall-lightning"])
    mlp = {"class_path": name, "init_args": {"sizes": [64, 8, 10], "activation": "torch.nn.GELU"}}
    cli = LightningCLI(
        ClassifierModule,
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        trainer_defaults={"accelerator": "cpu", "logger": False},
        args={"model": {"model": mlp, "num_classes": 10}},
    )
    assert [type(layer) for layer in cli.model.model] == [nn.Flatten, nn.Linear, nn.GELU, nn.Linear]
