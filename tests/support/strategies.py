"""How runs on several processes are spread."""

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy


def strategy_of(kind, processes):
    """Return a new strategy, on the CPU.

    Args:
        kind: ``"single"``; ``"fsdp"``, FSDP2; ``"distributed"``, FSDP2 with distributed
            checkpoints; all others are DDP.
        processes: How many there are.
    """
    if kind == "single":
        return "auto"
    if kind in ("fsdp", "distributed"):
        return ModelParallelStrategy(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=kind == "distributed",
            process_group_backend="gloo",
        )
    return DDPStrategy(process_group_backend="gloo")


def own_rank():
    """Return the number of this process among those that train together."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
