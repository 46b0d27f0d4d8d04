"""Under which of the Trainer's strategies callbacks read and write weights."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_WHOLE = (SingleDeviceStrategy, DDPStrategy)
_REASONS = {
    DeepSpeedStrategy: (
        "whose optimizer keeps copies of the weights in float32 that overwrite what is written to "
        "them, and which hides them altogether in stage 3"
    ),
    FSDPStrategy: "which flattens weights into shards that have no names",
}


def is_sharded(trainer: Trainer) -> bool:
    """Tell whether a process holds only its part of each weight."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def check_strategy(
    trainer: Trainer, callback: object, sharded: bool = False, allow_untested: bool = False
) -> None:
    """Refuse a strategy under which a callback is known not to work, or was never tried.

    Args:
        trainer: The Trainer.
        callback: Who asks; its class is named.
        sharded: Whether it works with sharded weights, those of ``ModelParallelStrategy``.
        allow_untested: Whether to let through what was never tried.

    Raises:
        MisconfigurationException: Naming the strategy, the reason and what to use instead.
    """
    strategy = trainer.strategy
    tested = (*_WHOLE, ModelParallelStrategy) if sharded else _WHOLE
    instead = ", 'ddp' or ModelParallelStrategy (FSDP2)" if sharded else " or 'ddp'"
    refused = f"{type(callback).__name__} does not support {type(strategy).__name__}"
    for kind, reason in _REASONS.items():
        if isinstance(strategy, kind):
            raise MisconfigurationException(
                f"{refused}, {reason}: use a single device{instead} as the Trainer's strategy"
            )
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise MisconfigurationException(
            f"{refused} whose processes are spawned or forked by fit: what the callback has "
            "learned would end with them. Use strategy='ddp', or torchrun"
        )
    if is_sharded(trainer) and not sharded:
        raise MisconfigurationException(
            f"{refused}, which shards the weights: use a single device or 'ddp' as the Trainer's "
            "strategy"
        )
    if allow_untested:
        return
    option = "; allow_untested=True tries it all the same" if sharded else ""
    if type(strategy) not in tested:
        raise MisconfigurationException(
            f"{type(callback).__name__} was never tried with {type(strategy).__name__}: use a "
            f"single device{instead} as the Trainer's strategy{option}"
        )
    if isinstance(strategy, ModelParallelStrategy) and _tensor_parallel(strategy) > 1:
        raise MisconfigurationException(
            f"{type(callback).__name__} was never tried with weights that ModelParallelStrategy "
            "splits over tensor-parallel processes: set tensor_parallel_size=1"
            f"{option}"
        )


def _tensor_parallel(strategy: ModelParallelStrategy) -> int:
    mesh = strategy.device_mesh
    assert mesh is not None  # setup comes after the processes have met
    return mesh["tensor_parallel"].size()
