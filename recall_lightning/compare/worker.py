"""One run of a comparison, in a process of its own."""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.cli.fit import RecallCLI
from recall_lightning.cli.recipe_files import defaults_beside
from recall_lightning.cli.run_config import SaveRunConfig
from recall_lightning.compare.measures import (
    HookProfiler,
    extra_bytes,
    method_callback,
    training_bytes,
    weights_digest,
)
from recall_lightning.compare.plan import PlannedRun
from recall_lightning.compare.results import COMMAND_FILE, FAILED, LOG_FILE, RUN_FILE
from recall_lightning.methods.table import METHODS
from recall_lightning.report.environment import write_environment
from recall_lightning.weights.atomic import write_whole


class MeasuredCLI(RecallCLI):
    """``recall-lightning`` with a clock on the callbacks' hooks and a digest of the start.

    Attributes:
        profiler: The clock; None where the recipe has a profiler of its own.
        initial_weights: See :func:`~recall_lightning.compare.measures.weights_digest`.
    """

    profiler: HookProfiler | None = None
    initial_weights = ""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer ``fit`` alone: every other one is a parser that takes its time to build."""
        return {"fit": RecallCLI.subcommands()["fit"]}

    def before_fit(self) -> None:
        """Note what training starts from."""
        self.initial_weights = weights_digest(self.model)
        super().before_fit()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("profiler") is None:
            config["profiler"] = self.profiler = HookProfiler()
        return super()._instantiate_trainer(config, callbacks)


def train(run: PlannedRun, threads: int) -> None:
    """Do one run, this process's only one, and write ``run.json`` once it has finished.

    Args:
        run: What to do. Its folder is emptied of an earlier run.
        threads: How many this process may compute with.

    Raises:
        SystemExit: If the run fails; the reason is the last line of ``train.log``.
    """
    started = time.perf_counter()
    _prepare_folder(run)
    _redirect(run.folder / LOG_FILE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    _end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the workers of data loaders
    torch.set_num_threads(threads)
    sys.argv = [run.command[0]]  # Lightning warns of arguments on both sides
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    try:
        content = measure(fit(list(run.command[1:])), run)
    except Exception as error:
        traceback.print_exc()
        print(_reason(error), file=sys.stderr)
        raise SystemExit(FAILED) from error
    content |= {"wall_seconds": time.perf_counter() - started, "threads": threads}
    write_whole(run.folder / RUN_FILE, json.dumps(content, indent=1) + "\n")


def _reason(error: Exception) -> str:
    """Say in one line why a run has failed."""
    said = " ".join(str(error).split())
    is_for_users = isinstance(error, (MisconfigurationException, FileNotFoundError))
    return said if is_for_users else f"{type(error).__name__}: {said}"


def fit(arguments: list[str]) -> MeasuredCLI:
    """Do what ``recall-lightning`` does with these arguments, and return all that it made."""
    return MeasuredCLI(
        args=arguments,
        save_config_callback=SaveRunConfig,
        seed_everything_default=0,
        parser_kwargs=parser_settings(arguments),
    )


def parser_settings(arguments: list[str]) -> dict[str, Any]:
    """Return the parsers' settings: each recipe lies on the ``defaults.yaml`` beside it."""
    return {"fit": {"default_config_files": defaults_beside(arguments)}}


def measure(cli: MeasuredCLI, run: PlannedRun) -> dict[str, Any]:
    """Return what a finished run's ``run.json`` holds.

    Raises:
        RuntimeError: If it did not get through all tasks.
    """
    file = run.folder / "task_matrix.json"
    record = json.loads(file.read_text()) if file.exists() else {"matrix": [], "tasks": ["?"]}
    if len(record["matrix"]) < len(getattr(cli.datamodule, "order", record["tasks"])):
        raise RuntimeError("training ended before all tasks were trained and validated")
    method = METHODS[run.setting.method]
    callback = method_callback(cli.trainer, method.callback)
    hook_seconds = None
    if cli.profiler is not None:
        hook_seconds = 0.0 if callback is None else cli.profiler.seconds_in(callback.state_key)
    write_environment(run.folder, cli.trainer.strategy.root_device)
    kept = ("monitor", "mode", "forgetting_variant", "tasks", "metrics", "before", "matrix")
    return {
        "label": run.setting.label,
        "method": method.name,
        "seed": run.seed,
        "swept": dict(run.setting.swept),
        "needs_old_data": method.needs_old_data,
        **{name: record[name] for name in kept},
        "seconds": record["seconds"],
        "hook_seconds": hook_seconds,
        "extra_bytes": extra_bytes(cli.trainer, method.callback, method.needs_old_data),
        "training_bytes": training_bytes(cli.trainer, cli.model),
        "initial_weights": cli.initial_weights,
        "load_average": os.getloadavg()[0],
        "command": shlex.join(run.command),
        "state": dict(run.state.parts),
    }


def _prepare_folder(run: PlannedRun) -> None:
    if (run.folder / COMMAND_FILE).exists():  # what lies there is ours
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / COMMAND_FILE, shlex.join(run.command) + "\n")


def _redirect(log: Path) -> None:
    """Let everything that this process prints, in Python or not, go into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # what Python still holds back is lost where the process is killed
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _end_with_parent() -> None:
    """Do not go on alone when the command that started this run is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
