"""Which weights of a snapshot a merge writes, where some are frozen or gone within a task."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.checks import first_of
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.weights.naming import (
    canonical_name,
    find_weights,
    memory_of,
    named_weights,
)

_GONE = "gone from the model under this name (pruned, parametrised or replaced)"
_FROZEN = "frozen, and not trained since the last merge"
_LATE = "trainable only since the snapshot was taken"


class TrainedWeights:
    """Tells of a task's weights which have been trained since the last merge.

    Those are merged, though they may be frozen at the moment, as the two sides of a GAN are in
    turn. What has gone stays left out until the task ends even if it returns: a weight that was
    pruned returns with zeros that a merge would fill.

    Example:
        >>> import torch
        >>> layer, trained = nn.Linear(2, 2), TrainedWeights()
        >>> trained.observe(torch.optim.SGD(layer.parameters(), lr=0.1))
        >>> trained.reasons(layer.requires_grad_(False), dict(layer.named_parameters()))
        {}
        >>> trained.merged()
        >>> list(trained.reasons(layer, dict(layer.named_parameters())))
        ['weight', 'bias']
    """

    def __init__(self) -> None:
        self._trained: dict[int, Tensor] = {}  # by identity, since the last merge
        self._gone: set[str] = set()
        self._told: dict[str, str] = {}
        self._frozen: set[int] = set()  # at the batch's start
        self._toggled: set[int] = set()  # trained in a batch that began with them frozen

    def start_task(self) -> None:
        """Forget the last task."""
        self._trained, self._gone, self._told = {}, set(), {}

    def observe_batch(self, optimizers: Iterable[Optimizer]) -> None:
        """See what the optimizers have before a batch."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._frozen = {id(p) for group in groups for p in group["params"] if not p.requires_grad}

    def observe(self, optimizer: Optimizer) -> None:
        """See an optimizer before its step."""
        for group in optimizer.param_groups:
            trained = {id(p): p for p in group["params"] if p.requires_grad}
            self._trained |= trained
            self._toggled |= trained.keys() & self._frozen

    @contextmanager
    def all_trainable(self, module: nn.Module) -> Iterator[None]:
        """Have weights that are toggled be trainable inside the ``with`` block.

        A task begins with one side of a GAN frozen, which is trained in it all the same.
        """
        toggled = [(p, p.requires_grad) for p in module.parameters() if id(p) in self._toggled]
        self._toggled = {id(p) for p, _ in toggled}  # those of another model are gone
        try:
            for parameter, _ in toggled:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter, required in toggled:
                parameter.requires_grad_(required)

    def observe_names(self, module: nn.Module, snapshot: Mapping[str, Tensor]) -> None:
        """See which weights of a snapshot are there."""
        self._gone |= snapshot.keys() - find_weights(module, snapshot).keys()

    def merged(self) -> None:
        """Begin the time after a merge."""
        self._trained = {}

    def left_out(self, context: TaskContext) -> dict[str, str]:
        """Return the names that a merge leaves out, to why; say so where that is new."""
        snapshot = context.snapshots[-1]
        reasons = self.reasons(context.pl_module, snapshot)
        reasons |= _merged_as_one(context.structure, reasons)
        self._tell(reasons | dict.fromkeys(self._late(context.pl_module, snapshot), _LATE))
        return reasons

    def reasons(self, module: nn.Module, snapshot: Mapping[str, Tensor]) -> dict[str, str]:
        """Return which names of a snapshot are not to be merged, and why."""
        self.observe_names(module, snapshot)
        found: dict[str, str] = dict.fromkeys((n for n in snapshot if n in self._gone), _GONE)
        for name, weight in find_weights(module, snapshot).items():
            untrained = not weight.requires_grad and id(weight) not in self._trained
            if name not in found and isinstance(weight, nn.Parameter) and untrained:
                found[name] = _FROZEN
        return found

    def _late(self, module: nn.Module, snapshot: Mapping[str, Tensor]) -> list[str]:
        """Name what is trained and has no copy."""
        copied = set(map(memory_of, find_weights(module, snapshot).values()))
        now: dict[str, Tensor] = {
            canonical_name(n): p for n, p in module.named_parameters() if id(p) in self._trained
        }
        now |= named_weights(module)
        floating = {name: weight for name, weight in now.items() if weight.is_floating_point()}
        return [name for name, weight in floating.items() if memory_of(weight) not in copied]

    def _tell(self, reasons: Mapping[str, str]) -> None:
        new = {name: why for name, why in reasons.items() if self._told.get(name) != why}
        self._told |= new
        for why in dict.fromkeys(new.values()):
            names = [name for name in new if new[name] == why]
            rank_zero_warn(f"left out of this task's merges: {first_of(names)}, {why}")


def _merged_as_one(structure: Structure, left_out: Mapping[str, str]) -> dict[str, str]:
    """Name what can only be merged together with a weight that is left out."""
    groups = [(one.weight, one.bias) for one in structure.maps]
    groups += [(pair.a, pair.b) for pair in structure.lora_pairs]
    more: dict[str, str] = {}
    for first, second in groups:
        for one, other in ((first, second), (second, first)):
            if one in left_out and other is not None and other not in left_out:
                more[other] = f"merged as one with {one}"
    return more
