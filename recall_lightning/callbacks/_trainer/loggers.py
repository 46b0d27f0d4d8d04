"""What Lightning's loggers take, each in its own way: scalars, figures, tables, a folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_scalars(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Log numbers against the optimizer step, whatever ``log_every_n_steps`` says."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=trainer.global_step)
        logger.save()


def log_figure(trainer: Trainer, key: str, draw: Callable[[], "Figure"]) -> None:
    """Draw a figure and log it, if a logger shows images: W&B and TensorBoard do."""
    shows = [each for each in trainer.loggers if isinstance(each, (WandbLogger, TensorBoardLogger))]
    if not shows or not trainer.is_global_zero:
        return
    image = _as_image(draw())
    for logger in shows:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [image])
        else:
            logger.experiment.add_image(key, image, trainer.global_step, dataformats="HWC")


def log_table(
    trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Log a table to the loggers that show tables: W&B."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])


def log_config(trainer: Trainer, settings: Mapping[str, object]) -> None:
    """Put settings into the config of runs by which loggers find and group them: W&B's."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.config.update(dict(settings), allow_val_change=True)


def log_curves(
    trainer: Trainer,
    key: str,
    steps: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    x: str,
) -> None:
    """Log a chart with a line a name to the loggers that draw such: W&B.

    Args:
        trainer: The Trainer.
        key: What the chart is called.
        steps: Where the lines' points are.
        curves: Name to the values at those; NaN is a gap.
        x: What the steps are.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            import wandb

            chart = wandb.plot.line_series(
                list(steps), [list(each) for each in curves.values()], list(curves), key, x
            )
            logger.experiment.log({key: chart})


def keep_file(trainer: Trainer, file: Path) -> None:
    """Copy a file of the run's folder among those that a logger keeps of a run: W&B's.

    They lie there in the folder ``recall_lightning``.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero and file.is_file():
            place = Path(logger.experiment.dir) / "recall_lightning" / file.name
            place.parent.mkdir(exist_ok=True)
            write_whole(place, file.read_bytes())
            logger.experiment.save(str(place), base_path=logger.experiment.dir, policy="now")


def alert(trainer: Trainer, title: str, text: str) -> None:
    """Send an alert to the loggers that have such: W&B."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.alert(title=title, text=text, level="WARN")


def plot_against(trainer: Trainer, pattern: str, step_metric: str) -> None:
    """Let W&B draw the metrics of ``pattern`` over another metric than the step."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.define_metric(step_metric)
            logger.experiment.define_metric(pattern, step_metric=step_metric)


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
