"""EfficientNet-Lite0, pre-trained on ImageNet, through clothes, digits, and other digits."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.real.images import Pictures, digits, fashion_mnist, first, mnist, split
from benchmarks.real.packages import file_of
from recall_lightning.data import TaskStream

_STEM, _FEATURES = 32, 1280
_SIDE = 28  # of most of the pictures


class Stage(NamedTuple):
    """Blocks of one kind: how many, and of the first one kernel, stride, expansion, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946, table 1); Lite leaves out its squeezing and
# exciting, and has ReLU6 in place of swish.
STAGES = [
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
]


def same_padded(inputs: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad ``(B, C, H, W)`` as TensorFlow's ``SAME``: an odd one comes behind."""
    pads: list[int] = []
    for size in (inputs.shape[3], inputs.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(inputs, pads)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # as in the TensorFlow original


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut where shapes allow it.

    Names are those of the weights' file.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.kernel, self.stride = kernel, stride
        self.expands = expansion > 1
        self.shortcut = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        if self.expands:
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = self._depthwise_conv(same_padded(hidden, self.kernel, self.stride))
        hidden = self._bn2(self._project_conv(functional.relu6(self._bn1(hidden))))
        return hidden + inputs if self.shortcut else hidden


class EfficientNetLite0(nn.Module):
    """The network; names are those of the weights' file.

    Args:
        classes: Outputs of the head.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        blocks, channels = [], _STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(
                    InvertedResidual(
                        channels, stage.channels, stage.kernel, stride, stage.expansion
                    )
                )
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, _FEATURES, 1, bias=False)
        self._bn1 = _norm(_FEATURES)
        self._fc = nn.Linear(_FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, 3, H, W)``, (value in 0 to 255 - 127) / 128."""
        hidden = self._conv_stem(same_padded(images, 3, 2))
        hidden = functional.relu6(self._bn0(hidden))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = functional.relu6(self._bn1(self._conv_head(hidden)))
        return self._fc(hidden.mean((2, 3)))


def pretrained(classes: int) -> EfficientNetLite0:
    """Load the weights of ImageNet, and put a new head on them.

    Args:
        classes: Outputs of the head, which begins from random weights.
    """
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(file_of("efficientnet"), "cpu", weights_only=True))
    network._fc = nn.Linear(_FEATURES, classes)
    return network


class PretrainedEfficientNet(nn.Module):
    """:func:`pretrained`, of grey pictures in 0 to 1 that are as large as one likes.

    Args:
        classes: Outputs.
        side: What pictures are scaled to.
    """

    def __init__(self, classes: int = 10, side: int = 64) -> None:
        super().__init__()
        self.side = side
        self.network = pretrained(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of pictures ``(B, 1, H, W)``."""
        scaled = functional.interpolate(
            (images * 255 - 127) / 128, (self.side, self.side), mode="bilinear", antialias=True
        )
        return self.network(scaled.expand(-1, 3, -1, -1))


def pictures(
    seed: int = 0,
    train_images: int = 1_440,
    val_images: int = 300,
    epochs_per_task: int = 3,
    batch_size: int = 32,
) -> TaskStream:
    """Fashion-MNIST, then MNIST, then scikit-learn's digits, all with the labels 0 to 9.

    Args:
        seed: Draws the pictures, and orders them.
        train_images: Pictures of each task to train on.
        val_images: Held-out pictures of each task.
        epochs_per_task: Epochs of each task.
        batch_size: Pictures in a training batch.
    """
    clothes = (split(fashion_mnist("train"), 0, seed)[0], split(fashion_mnist("test"), 0, seed)[0])
    parts = {
        "fashion_mnist": clothes,
        "mnist": split(mnist(), val_images, seed),
        "digits": split(digits(), val_images, seed),
    }
    return TaskStream.from_datasets(
        [
            (_scaled(first(train, train_images)), _scaled(first(val, val_images)))
            for train, val in parts.values()
        ],
        list(parts),
        seed=seed,
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=100,
    )


def _scaled(chosen: Pictures) -> TensorDataset:
    """Bring pictures to 0 to 1 and to one size, as replay joins those of several tasks."""
    images, labels = chosen
    as_large = functional.interpolate(images.unsqueeze(1) / 255, (_SIDE, _SIDE), mode="bilinear")
    return TensorDataset(as_large, labels)
