"""A plain multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn


class MLP(nn.Sequential):
    """Linear layers with an activation between them, on flattened inputs.

    Inputs ``(B, ...)`` are flattened to ``(B, sizes[0])``; the outputs are ``(B, sizes[-1])``,
    without an activation.

    Example:
        >>> import torch
        >>> model = MLP([64, 128, 10])
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in model.named_children()]
        ['flatten', 'hidden_1', 'activation_1', 'output']

    Args:
        sizes: Numbers of inputs, of units in each hidden layer, and of outputs.
        activation: Class of the activation after every hidden layer.

    Raises:
        MisconfigurationException: If there are fewer than two sizes, or one is below 1.
    """

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise MisconfigurationException(
                f"MLP: sizes={list(sizes)} must be two numbers or more of 1 or more: inputs, hidden"
                " units of each layer, outputs."
            )
        self.add_module("flatten", nn.Flatten())
        *hidden, output = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        for index, layer in enumerate(hidden, start=1):
            self.add_module(f"hidden_{index}", layer)
            self.add_module(f"activation_{index}", activation())
        self.add_module("output", output)
