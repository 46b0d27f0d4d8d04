"""What Lightning's loggers take, each in its own way: scalars, figures, tables, a folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.wandb_history import furthest
from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_DEFINED: WeakKeyDictionary[WandbLogger, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Point:
    """Where something is logged, on an axis that only grows over a run.

    Attributes:
        axis: The axis, a metric's name.
        at: The place on it.
    """

    axis: str
    at: float


def log_scalars(
    trainer: Trainer,
    scalars: Mapping[str, float],
    point: Point | None = None,
    summaries: Mapping[str, str] | None = None,
) -> None:
    """Log numbers against the optimizer step, whatever ``log_every_n_steps`` says.

    Args:
        trainer: The Trainer.
        scalars: The numbers by name.
        point: Where on an axis of their own they are logged, if they have one; in W&B once, and
            drawn over it.
        summaries: Name to what W&B's summary holds of a number, such as ``"last,max"``; of others
            it is the last value.
    """
    for logger in trainer.loggers:
        fresh = {n: v for n, v in scalars.items() if not _has(trainer, logger, n, point)}
        if not fresh:
            continue
        if isinstance(logger, WandbLogger) and trainer.is_global_zero and point is not None:
            _define(logger, fresh, point.axis, summaries or {})
        own = {} if point is None else {point.axis: point.at}
        logger.log_metrics(fresh | own, step=trainer.global_step)
        logger.save()


def log_figure(trainer: Trainer, key: str, draw: Callable[[], "Figure"], point: Point) -> None:
    """Draw a figure and log it, if a logger shows images: W&B, there once, and TensorBoard do."""
    shows = [
        logger
        for logger in trainer.loggers
        if isinstance(logger, (WandbLogger, TensorBoardLogger))
        and not _has(trainer, logger, key, point)
    ]
    if not shows or not trainer.is_global_zero:
        return
    image = _as_image(draw())
    for logger in shows:
        if isinstance(logger, WandbLogger):
            import wandb

            _log_medium(logger, key, [wandb.Image(image)], point)
        else:
            logger.experiment.add_image(key, image, trainer.global_step, dataformats="HWC")


def log_table(
    trainer: Trainer,
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    point: Point,
) -> None:
    """Log a table to the loggers that show tables: W&B, once."""
    for logger in _wandb_loggers(trainer):
        if not _has(trainer, logger, key, point):
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            _log_medium(logger, key, table, point)


def log_config(trainer: Trainer, settings: Mapping[str, object]) -> None:
    """Put settings into the config of runs by which loggers find and group them: W&B's."""
    for logger in _wandb_loggers(trainer):
        logger.experiment.config.update(dict(settings), allow_val_change=True)


def log_summary(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Put final values into the summary of runs by which loggers sort and compare them: W&B's."""
    for logger in _wandb_loggers(trainer):
        logger.experiment.summary.update(dict(values))


def log_curves(
    trainer: Trainer,
    key: str,
    steps: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    x: str,
    point: Point,
) -> None:
    """Log a chart with a line a name to the loggers that draw such: W&B, once.

    Args:
        trainer: The Trainer.
        key: What the chart is called.
        steps: Where the lines' points are.
        curves: Name to the values at those; NaN is a gap.
        x: What the steps are.
        point: Where it is logged.
    """
    for logger in _wandb_loggers(trainer):
        if _has(trainer, logger, f"{key}_table", point):  # under which the chart's data lie
            continue
        import wandb

        chart = wandb.plot.line_series(
            list(steps), [list(each) for each in curves.values()], list(curves), key, x
        )
        _log_medium(logger, key, chart, point)


def log_page(trainer: Trainer, key: str, file: Path) -> None:
    """Log a whole HTML page, as it is, to the loggers that show such: W&B."""
    for logger in _wandb_loggers(trainer):
        import wandb

        logger.experiment.log({key: wandb.Html(file.read_text(encoding="utf-8"), inject=False)})


def log_artifact(
    trainer: Trainer,
    path: Path,
    name: str,
    kind: str,
    metadata: Mapping[str, object],
    aliases: Sequence[str],
) -> None:
    """Hand a file to the loggers that keep versions of such, as artifacts: W&B.

    It is copied, so that it may change or go afterwards. W&B makes no new version of a file that is
    the same as before, such as one that is logged again after a resume.

    Args:
        trainer: The Trainer.
        path: The file.
        name: What it is called, as is the file in it; the run's id is put before the artifact's.
        kind: The artifact's type, such as ``"model"``.
        metadata: What is known of it, in plain Python.
        aliases: By which this version is found, besides ``latest``.
    """
    for logger in _wandb_loggers(trainer):
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(f"{run.id}-{name}", kind, metadata=dict(metadata))
        artifact.add_file(str(path), name=f"{name}{path.suffix}")
        run.log_artifact(artifact, aliases=["latest", *aliases])


def keeps_artifacts(trainer: Trainer) -> bool:
    """Tell whether any logger takes artifacts: W&B's does."""
    return any(isinstance(logger, WandbLogger) for logger in trainer.loggers)


def keep_file(trainer: Trainer, file: Path) -> None:
    """Copy a file of the run's folder among those that a logger keeps of a run: W&B's.

    They lie there in the folder ``recall_lightning``.
    """
    for logger in _wandb_loggers(trainer) if file.is_file() else []:
        place = Path(logger.experiment.dir) / "recall_lightning" / file.name
        place.parent.mkdir(exist_ok=True)
        write_whole(place, file.read_bytes())
        logger.experiment.save(str(place), base_path=logger.experiment.dir, policy="now")


def alert(trainer: Trainer, title: str, text: str) -> None:
    """Send an alert to the loggers that have such: W&B."""
    for logger in _wandb_loggers(trainer):
        logger.experiment.alert(title=title, text=text, level="WARN")


def _define(
    logger: WandbLogger, names: Iterable[str], axis: str, summaries: Mapping[str, str]
) -> None:
    """Let W&B draw metrics over an axis, each by its name.

    A pattern of names would not do: Lightning's own, ``*``, fits as well, and either may win.
    """
    run, known = logger.experiment, _DEFINED.setdefault(logger, set())
    for name in [each for each in (axis, *names) if each not in known]:
        over = None if name == axis else axis
        run.define_metric(name, step_metric=over, summary=summaries.get(name))
        known.add(name)


def _log_medium(logger: WandbLogger, key: str, medium: object, point: Point) -> None:
    logger.log_metrics({key: medium, point.axis: point.at})  # type: ignore[dict-item]


def _wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Return those that take something, on the process that logs."""
    takers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in takers if isinstance(logger, WandbLogger)]


def _has(trainer: Trainer, logger: Logger, key: str, point: Point | None) -> bool:
    """Tell whether a run of W&B has what a fit that goes on from a checkpoint logs once more.

    A run that is gone on with by its id, after a kill, has what was logged between the last
    checkpoint and the kill.
    """
    resumed = point is not None and trainer.ckpt_path is not None and trainer.is_global_zero
    if not (resumed and isinstance(logger, WandbLogger)):
        return False
    assert point is not None
    place = furthest(logger, key, point.axis)
    if place is None or point.at > place:
        return False
    rank_zero_warn(
        f"the run {logger.version} of Weights & Biases goes on beyond this checkpoint: what it has "
        "of merges and tasks is not logged again (a run that is to differ takes an id of its own)"
    )
    return True


def is_remote(folder: object) -> bool:
    """Tell whether a folder or file is on no local disk: a URL, such as ``s3://…``.

    >>> is_remote("memory://runs"), is_remote("runs")
    (True, False)
    """
    return "://" in str(folder)


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of this run's files, the first logger's; None without a logger.

    Must be called on all processes, like ``trainer.log_dir``.
    """
    folder = _folder(trainer.loggers[0]) if trainer.loggers else None
    folder = trainer.strategy.broadcast(folder)
    return None if folder is None else Path(folder)


def _folder(logger: Logger) -> str | None:
    if isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return logger.log_dir
    if logger.save_dir is None:
        return None
    version = logger.version
    version = version if isinstance(version, str) else f"version_{version}"
    return str(Path(logger.save_dir) / str(logger.name) / version)


def _as_image(figure: "Figure"):  # type: ignore[no-untyped-def]  # numpy (height, width, 3)
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
