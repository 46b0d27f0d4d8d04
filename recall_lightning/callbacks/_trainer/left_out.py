"""Weights that no callback of this package protects."""

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.checks import first_of
from recall_lightning.weights.naming import complex_weights


def tell_what_is_left_out(callback: Callback, pl_module: LightningModule) -> None:
    """Name the weights that a callback leaves to training alone: those of complex numbers.

    Example:
        >>> tell_what_is_left_out(Callback(), LightningModule())  # which has none
    """
    names = complex_weights(pl_module)
    if names:
        rank_zero_warn(
            f"{type(callback).__name__} does not protect {first_of(names)}: weights of "
            "complex numbers are left to training alone; keep their real and imaginary parts as "
            "parameters of their own, or freeze them"
        )
