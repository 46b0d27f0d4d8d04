"""What Lightning leaves out of a checkpoint, and a run needs to go on as if never interrupted."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.weights.sharding import of_all_processes

_KEY = "recall_lightning"


class ExactResume:
    """What a checkpoint holds beside Lightning's own, from when it is loaded to when it is used.

    One a Trainer: each method is called once, whatever the number of callbacks.
    """

    def __init__(self) -> None:
        self._progress: dict[str, Any] | None = None

    def forget(self) -> None:
        """Drop what was loaded: it is another fit's."""
        self._progress = None

    def save(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add to a checkpoint what Lightning leaves out.

        That is the state of every process's random generators, gradients accumulated for a step
        that is still to come (of one process; several have their own, which would be several
        models' size), and whether a validation was due right after the checkpoint: Lightning skips
        it otherwise.

        Must be called on all processes.
        """
        epochs = trainer.fit_loop.epoch_progress.current
        checkpoint[_KEY] = {
            "random_states": of_all_processes(random_state(pl_module.device)),
            "gradients": _accumulated_gradients(trainer, pl_module),
            "validation_due": _validation_is_due(trainer),
            "in_epoch": epochs.processed < epochs.ready,  # type: ignore[attr-defined]
        }

    def load(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Take what :meth:`save` added, and have Lightning's loops take note of it.

        Must be called before the loops are restored.
        """
        progress = self._progress = checkpoint.get(_KEY)
        if progress is None:
            return
        loops = checkpoint["loops"]["fit_loop"]
        if progress["validation_due"]:
            _go_on_with_validation(loops)
            if 0 < trainer.max_steps <= checkpoint["global_step"]:  # Lightning would end at once
                progress["max_steps"] = trainer.max_steps
                trainer.fit_loop.epoch_loop.max_steps = checkpoint["global_step"] + 1
        elif trainer.max_steps != -1 and not progress["in_epoch"]:
            _go_on_with_next_epoch(loops)

    def restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what was loaded; in ``on_train_start``, as late as possible."""
        progress = self._progress
        if progress is None:
            return
        if progress["validation_due"]:
            val_loop = trainer.fit_loop.epoch_loop.val_loop
            val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        parameters = dict(pl_module.named_parameters())
        for name, gradient in progress["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        states = progress["random_states"]
        if trainer.global_rank < len(states):
            restore_random_state(states[trainer.global_rank], pl_module.device)
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint holds the random states of {len(states)} processes and there are "
                f"{trainer.world_size}: training goes on, but not as it would have"
            )
        _draw_order_again(trainer)

    def start_validation(self, trainer: Trainer) -> None:
        """Before the last step's own validation, have training end where it was meant to.

        The sanity check is none of training's: it comes before :meth:`restore`.
        """
        if self._progress is None or trainer.sanity_checking:
            return
        if "max_steps" in self._progress:
            trainer.fit_loop.epoch_loop.max_steps = self._progress["max_steps"]
        self._progress = None


def _go_on_with_validation(loops: dict[str, Any]) -> None:
    """Have a batch count as done, all but whose last hooks were; its validation as not begun."""
    for counter in (loops["epoch_loop.batch_progress"][span] for span in ("total", "current")):
        counter["completed"] = counter["processed"]
    current = loops["epoch_loop.val_loop.batch_progress"]["current"]
    current.update(dict.fromkeys(current, 0))


def _go_on_with_next_epoch(loops: dict[str, Any]) -> None:
    """Have an epoch count as done, which Lightning takes for one to finish if max_steps is set.

    It would skip the next one.
    """
    for counter in (loops["epoch_progress"][span] for span in ("total", "current")):
        counter["completed"] = counter["processed"]
    batches = loops["epoch_loop.batch_progress"]
    batches["current"].update(dict.fromkeys(batches["current"], 0))
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # it adds one too many


def _draw_order_again(trainer: Trainer) -> None:
    """Where a new epoch starts, draw for its order again: the generators now stand where they did.

    A loader of the user's may draw it from the global ones, and has done so before this hook.
    """
    loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    last = batches.restarted_on_train_batch_end and batches.batch_progress.is_last_batch
    if loop._data_fetcher is None or (loop.restarted_mid_epoch and not last):
        return
    iter(loop._data_fetcher)
    if trainer.reload_dataloaders_every_n_epochs and not loop._should_reload_train_dl:  # type: ignore[attr-defined]
        iter(loop._data_fetcher)  # Lightning asks a new loader twice


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's, Python's and NumPy's global generators.

    They are tensors and plain Python; of CUDA it is the generator of ``device``.

    Example:
        >>> state = random_state(torch.device("cpu"))
        >>> drawn = torch.rand(2), random.random()
        >>> restore_random_state(state, torch.device("cpu"))
        >>> torch.equal(drawn[0], torch.rand(2)), drawn[1] == random.random()
        (True, True)
    """
    import numpy as np

    version, numbers, gauss = random.getstate()
    of_numpy: dict[str, Any] = np.random.get_state(legacy=False)
    key = torch.tensor(of_numpy["state"]["key"].astype("int64"))
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": of_numpy | {"state": of_numpy["state"] | {"key": key}},
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_state` returned."""
    import numpy as np

    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    key = state["numpy"]["state"]["key"].numpy().astype("uint32")
    np.random.set_state(state["numpy"] | {"state": state["numpy"]["state"] | {"key": key}})
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _accumulated_gradients(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    # who steps at will may accumulate at any time
    step_to_come = not pl_module.automatic_optimization or trainer.fit_loop._should_accumulate()
    if trainer.world_size > 1 or not step_to_come:
        return {}
    return {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}


def _validation_is_due(trainer: Trainer) -> bool:
    """Tell whether a validation follows the batch that is being ended.

    One by the clock is not: another run has another clock.
    """
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    batch = loop.batch_progress.current
    between = trainer.training and batch.completed < batch.processed == batch.ready  # type: ignore[attr-defined]
    by_clock = getattr(trainer, "_val_check_time_interval", None) is not None
    if not between or by_clock or fetcher is None:
        return False
    return loop._should_check_val_fx(fetcher)
