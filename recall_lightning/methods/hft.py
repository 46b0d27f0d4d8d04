"""Half fine-tuning: each task trains a random half of the weights and leaves the rest alone."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from recall_lightning.callbacks._trainer.left_out import tell_what_is_left_out
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.checks import FormError
from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingCallback, ProtectingState
from recall_lightning.weights.growth import new_since
from recall_lightning.weights.naming import find_weights, named_weights


class HalfFineTuningState(ProtectingState):
    """What a checkpoint holds of it."""

    frozen: list[str]


class HalfFineTuning(ProtectingCallback):
    """Freezes a random half of the weight matrices in each task, another half in the next.

    Source: HFT (arXiv 2404.18466), which draws whole matrices, by kind and layer by layer. The
    convention here: a *layer* is what a number in a weight's name tells apart
    (``model.layers.3.mlp.up_proj.weight`` is of layer 3), and within a layer the matrices of one
    submodule (attention, feed-forward) are a *group*, all its vectors (norms, biases) another. In
    each group ``fraction`` of the tensors is drawn; where that is no whole number, as with three
    feed-forward matrices, it is rounded up in some layers and down in the others, so that it is
    right over all layers. What is in no layer, such as embeddings and head, makes a group by
    itself. The share of *numbers* frozen is ``fraction`` on average only, as sizes differ.

    A frozen weight's gradient is taken away right before the optimizer steps, and optimizers skip
    what has no gradient: it keeps every bit, under weight decay and with momentum left over from
    earlier tasks too, and does not count in gradient clipping. ``requires_grad`` stays as it is, so
    that DDP and other callbacks see the model they started with. BatchNorm's statistics are no
    weights and follow the data. What has grown since the last task, such as a head for new classes,
    or was added is trained.

    Args:
        fraction: The part of the weights to freeze, between 0 and 1.
        seed: Seed of the draws, together with the number of the task's visit.
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then all of it is trained in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For a fraction out of range, an optimizer that moves weights
            without gradients (LBFGS), or a strategy that shards the weights.

    Attributes:
        frozen: Canonical names of the weights that the current task leaves alone.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[HalfFineTuning()], logger=False)
    """

    state_form: ClassVar[type] = HalfFineTuningState

    def __init__(
        self,
        fraction: float = 0.5,
        seed: int = 0,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not 0 < fraction < 1:
            raise MisconfigurationException(
                f"fraction={fraction!r} must lie between 0 and 1: the part of the weights to freeze"
            )
        self.fraction = fraction
        self.seed = seed
        self.frozen: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded weights."""
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer that does not skip weights without a gradient."""
        super().on_train_start(trainer, pl_module)
        tell_what_is_left_out(self, pl_module)
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise MisconfigurationException(
                "HalfFineTuning cannot freeze weights under LBFGS, which moves all of them at "
                "once: use an optimizer that skips weights without a gradient, such as AdamW"
            )

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Draw this task's half."""
        weights = named_weights(pl_module)
        new = new_since(self.clock.earlier_shapes, weights)
        parameters = {n: w for n, w in weights.items() if _is_parameter(w) and n not in new}
        assert self.visit is not None
        seed = self.seed * 1_000_003 + self.visit
        self.frozen = draw_frozen(parameters, self.fraction, seed) if self.protects else []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the frozen weights' gradients away."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        weights = find_weights(pl_module, self.frozen)
        for weight in weights.values():
            weight.grad = None
        gone = [name for name in self.frozen if name not in weights]
        if gone:
            self.frozen = list(weights)
            rank_zero_warn(
                f"HalfFineTuning no longer freezes {', '.join(gone[:3])}"
                f"{' and more' if len(gone) > 3 else ''}: gone from the model under this name "
                "within the task (pruned, parametrised or replaced)"
            )

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check that what is frozen is there."""
        for name in self.frozen:
            if name not in weights:
                raise FormError(f"frozen names {name!r}, which is no weight of the model")

    def state_dict(self) -> dict[str, Any]:
        """Return the task and its draw."""
        return {**super().state_dict(), "frozen": list(self.frozen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.frozen = list(state_dict["frozen"])


def draw_frozen(weights: Mapping[str, Tensor], fraction: float, seed: int) -> list[str]:
    """Draw the weights to freeze, group by group; see :class:`HalfFineTuning`.

    Args:
        weights: Canonical name to weight.
        fraction: The part of each group to draw.
        seed: Seed of the draw.

    Returns:
        The names drawn, in the order of ``weights``.

    Example:
        >>> names = ["q.weight", "k.weight", "v.weight", "o.weight"]
        >>> weights = {f"layers.0.attn.{name}": torch.zeros(2, 2) for name in names}
        >>> len(draw_frozen(weights, fraction=0.5, seed=0))
        2
    """
    generator = torch.Generator().manual_seed(seed)
    frozen: set[str] = set()
    for layers in _groups(weights).values():
        shares = [fraction * len(names) for names in layers]
        counts = [math.floor(share + 1e-9) for share in shares]
        broken = [i for i, share in enumerate(shares) if share - counts[i] > 1e-6]
        extra = sum(shares) - sum(counts) + 1e-9 + float(torch.rand((), generator=generator))
        for i in torch.randperm(len(broken), generator=generator)[: int(extra)].tolist():
            counts[broken[i]] += 1
        for names, count in zip(layers, counts, strict=True):
            order = torch.randperm(len(names), generator=generator).tolist()
            frozen.update(names[i] for i in order[:count])
    return [name for name in weights if name in frozen]


def _groups(weights: Mapping[str, Tensor]) -> dict[tuple[str, str], list[list[str]]]:
    """Group names by kind; in each kind, a list of names a layer."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, weight in weights.items():
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        end = numbers[0] + 1 if numbers else 0
        stack, inside = ".".join(parts[: max(end - 1, 0)]), parts[end:]
        kind = "vectors" if weight.dim() < 2 else inside[0]
        layer = ".".join(parts[:end]) if numbers else name
        groups[stack, kind][layer].append(name)
    return {kind: list(layers.values()) for kind, layers in groups.items()}


def _is_parameter(weight: Tensor) -> bool:
    return isinstance(weight, nn.Parameter)


METHOD = Method(
    "hft",
    "half of the parameters frozen in each task",
    HalfFineTuning,
    keeps_first="from_first_task",
)
