"""The weights of a few steps ago, to which a task goes back that has ended unnoticed."""

from typing import Any, TypedDict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from recall_lightning.weights.naming import find_weights, running_statistics
from recall_lightning.weights.sharding import reshard, write_into
from recall_lightning.weights.snapshot import Snapshot


class EarlierWeightsState(TypedDict):
    """What a checkpoint holds of them."""

    earlier: dict[str, Tensor] | None
    batches: int
    step: int
    trained_since: dict[str, Tensor] | None


class EarlierWeights:
    """A copy of the weights from a few steps ago, and what has been trained since.

    Where a change has been noticed, :meth:`go_back` gives the model the copy, with which its task
    ends; once the next one has begun, :meth:`go_on` adds what had been trained since the copy.

    Example:
        >>> layer = LightningModule()
        >>> layer.weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> earlier = EarlierWeights()
        >>> earlier.copy(layer, step=20)
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(0.5)  # some steps
        ...     earlier.go_back(layer)
        ...     _ = layer.weight.mul_(2)  # a merge
        ...     earlier.go_on(layer)
        >>> layer.weight.data
        tensor([2.5000])
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget the copy and what came after."""
        self._earlier: Snapshot | None = None
        self._trained_since: Snapshot | None = None
        self.batches = 0
        """How many were trained since the copy."""
        self.step = 0
        """At which optimizer step it was made."""

    @property
    def has_copy(self) -> bool:
        """Whether there is something to go back to."""
        return self._earlier is not None

    def copy(self, pl_module: LightningModule, step: int) -> None:
        """Copy the weights as they are after a step, in place of an older copy."""
        reshard(pl_module)
        if self._earlier is None:
            self._earlier = Snapshot.take(pl_module)
        else:  # into the same memory
            live = find_weights(pl_module, self._earlier)
            write_into({name: self._earlier[name] for name in live}, live)
        self.batches, self.step = 0, step

    def go_back(self, pl_module: LightningModule) -> None:
        """Give the model the copy, and keep what has been trained since."""
        assert self._earlier is not None
        reshard(pl_module)
        live = find_weights(pl_module, self._earlier)
        statistics = running_statistics(pl_module)
        # a variance plus a difference of variances need be none
        since = {n: w.detach() - self._earlier[n] for n, w in live.items() if n not in statistics}
        self._trained_since = Snapshot(since)
        write_into(live, self._earlier)
        self._earlier = None

    def go_on(self, pl_module: LightningModule) -> None:
        """Add what had been trained since the copy, where the shapes are still the same."""
        since, self._trained_since = self._trained_since, None
        if since is None:
            return
        reshard(pl_module)
        with torch.no_grad():
            for name, weight in find_weights(pl_module, since).items():
                if weight.shape == since[name].shape:
                    weight.add_(since[name])

    def resume(self, pl_module: LightningModule) -> None:
        """After a resume, bring what the checkpoint held to the weights' devices."""
        for name in ("_earlier", "_trained_since"):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.to_devices_of(find_weights(pl_module, held)))

    def state_dict(self) -> dict[str, Any]:
        """Return both, and how many batches lie between."""
        return {
            "earlier": None if self._earlier is None else dict(self._earlier),
            "batches": self.batches,
            "step": self.step,
            "trained_since": None if self._trained_since is None else dict(self._trained_since),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        earlier, since = state_dict["earlier"], state_dict["trained_since"]
        self._earlier = None if earlier is None else Snapshot(earlier)
        self._trained_since = None if since is None else Snapshot(since)
        self.batches, self.step = state_dict["batches"], state_dict["step"]
