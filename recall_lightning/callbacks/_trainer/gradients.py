"""What optimizers are about to use: their weights, and gradients as they are."""

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.weights.naming import named_weights


def optimized_weights(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Name the weights that an optimizer changes, as ``named_weights`` does.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> list(optimized_weights(torch.optim.SGD(net[1].parameters(), lr=0.1), net))
        ['1.weight', '1.bias']
    """
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: weight for name, weight in named_weights(module).items() if id(weight) in owned}


def amp_scale(optimizer: Optimizer, module: nn.Module) -> float:
    """Return what AMP has scaled an optimizer's gradients by before its step, 1 where it is undone.

    Under 16-mixed, fused optimizers undo the scale within their step, others before it.
    """
    trainer = getattr(module, "_trainer", None)
    scaler = getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def loss_scale(trainer: Trainer) -> float | None:
    """Return what AMP scales losses by, which becomes less with every step that it skips.

    Example:
        >>> loss_scale(Trainer(logger=False)) is None  # no AMP, or one that scales nothing
        True
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient with its zeros, if it is sparse; else as it is."""
    return gradient.to_dense() if gradient.is_sparse else gradient
