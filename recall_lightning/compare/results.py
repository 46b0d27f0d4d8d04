"""What finished runs say: read from their folders, and put into numbers with intervals.

Example:
    >>> interval = confidence_interval([1.0, 2.0, 3.0])
    >>> f"{interval.mean} ± {interval.half_width:.3f}"
    '2.0 ± 2.484'
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

COMPARISON_FILE = "comparison.json"
RUN_FILE, COMMAND_FILE, LOG_FILE = "run.json", "command.txt", "train.log"
FAILED = 3
"""The exit code of a run that has said why on the last line of its log."""

FAILED = 3
"""The exit code of a run that has said why, on the last line of its log."""

# A gap this small, relative to the scores, is not worth a percentage of it.
_NO_GAP = 1e-3


@dataclass(frozen=True)
class Run:
    """A finished run, as its ``run.json`` has it.

    Attributes:
        label: The row of the tables that it belongs to.
        method: The value of ``--method``.
        seed: Seed of weights and data.
        swept: Values of a sweep, by argument.
        needs_old_data: Whether the method reads data of earlier tasks.
        monitor: What the scores are, such as ``"val/acc"``.
        mode: ``"max"`` or ``"min"``: which scores are better.
        forgetting_variant: See :func:`recall_lightning.metrics.functional.forgetting`.
        tasks: Names of the tasks.
        metrics: Such as ``average`` and ``forgetting``; what is undefined, or not finite, is
            missing.
        matrix: A row a trained task, a score a task.
        seconds: Wall time of training, validation included.
        hook_seconds: What the method's own callback took of it; None if it was not measured.
        extra_bytes: What the method stores; None where that is all old data.
        training_bytes: Parameters, gradients and optimizer state.
        initial_weights: Hash of the weights before training.
        wall_seconds: Of the whole process, from model to figures.
        threads: How many the process computed with.
    """

    label: str
    method: str
    seed: int
    swept: Mapping[str, str]
    needs_old_data: bool
    monitor: str
    mode: str
    forgetting_variant: str
    tasks: Sequence[str]
    metrics: Mapping[str, float]
    matrix: Sequence[Sequence[float | None]]
    seconds: float
    hook_seconds: float | None
    extra_bytes: int | None
    training_bytes: int
    initial_weights: str
    wall_seconds: float
    threads: int = 1

    @property
    def higher_is_better(self) -> bool:
        """The direction of the scores."""
        return self.mode == "max"


@dataclass(frozen=True)
class Interval:
    """A mean with half the width of its confidence interval.

    Attributes:
        mean: NaN of no values.
        half_width: NaN of fewer than two values.
        count: Of how many values.
    """

    mean: float
    half_width: float
    count: int


@dataclass(frozen=True)
class Summary:
    """A row of the tables: one label over its seeds.

    Attributes:
        label: Its name.
        method: The value of ``--method``.
        needs_old_data: Whether the method reads data of earlier tasks.
        swept: Values of a sweep, by argument.
        runs: Number of runs.
        values: Means over seeds by quantity: the metrics, ``gap_closed`` in percent, ``seconds``,
            ``hook_share`` and ``memory_share`` in percent, ``extra_bytes``.
    """

    label: str
    method: str
    needs_old_data: bool
    swept: Mapping[str, str]
    runs: int
    values: Mapping[str, Interval] = field(default_factory=dict)

    def value(self, name: str) -> Interval:
        """Return a quantity; an empty interval where it is undefined."""
        return self.values.get(name, Interval(math.nan, math.nan, 0))


def load_run(folder: Path) -> Run:
    """Read the ``run.json`` of a finished run's folder.

    Raises:
        FileNotFoundError: If the run has not finished.
    """
    content = json.loads((folder / RUN_FILE).read_text())
    return Run(**{name: content[name] for name in Run.__dataclass_fields__})


def load_runs(folder: str | Path) -> list[Run]:
    """Read the finished runs below a comparison's folder, in the order of labels and seeds.

    Left out are those of another recipe, other data or other code than the comparison's last.

    Args:
        folder: What ``recall-lightning compare --out`` was given.
    """
    file = Path(folder, COMPARISON_FILE)
    state = (json.loads(file.read_text()) if file.exists() else {}).get("state", {})
    found = []
    for path in Path(folder).glob(f"*/seed_*/{RUN_FILE}"):
        own = json.loads(path.read_text()).get("state", {})
        if all(own.get(name) == value for name, value in state.items()):
            found.append(load_run(path.parent))
    return sorted(found, key=lambda run: (run.label, run.seed))


def confidence_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Return the mean and Student's confidence interval of it.

    ``t · s / √n`` with s the standard deviation of a sample (divided by n − 1) and t the quantile
    of Student's distribution with n − 1 degrees of freedom.

    Args:
        values: Independent measurements, one a seed.
        level: The part of such intervals that contain the true mean, between 0 and 1.

    Example:
        >>> confidence_interval([3.0])
        Interval(mean=3.0, half_width=nan, count=1)
    """
    values = list(values)
    if len(values) < 2:
        return Interval(values[0] if values else math.nan, math.nan, len(values))
    from scipy.stats import t  # slow to import

    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    half_width = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), half_width, len(values))


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Return the mean of ``values − reference`` over the seeds that both have.

    Equal seeds have equal data and equal first weights, so what they share cancels.

    Args:
        values: By seed.
        reference: By seed.

    Example:
        >>> paired_difference({0: 2.0, 1: 4.0, 2: 9.0}, {0: 1.0, 1: 3.0}).mean
        1.0
    """
    return confidence_interval([values[s] - reference[s] for s in values if s in reference])


def gap_closed(
    values: Mapping[int, float], finetune: Mapping[int, float], joint: Mapping[int, float]
) -> dict[int, float]:
    """Return how much of the way from fine-tuning to joint training a method goes, in percent.

    ``100 · (A − A_finetune) / (A_joint − A_finetune)`` for each seed that all three have; the sign
    of a loss cancels. Where joint training is no different from fine-tuning, within a thousandth of
    the scores, it is undefined and left out.

    Args:
        values: Average score after the last task, by seed.
        finetune: The same of plain fine-tuning.
        joint: The same of joint training.

    Example:
        >>> gap_closed({0: 1.5, 1: 2.0}, {0: 3.0, 1: 3.0}, {0: 1.0, 1: 3.0})
        {0: 75.0}
    """
    shares = {}
    for seed in values:
        if seed not in finetune or seed not in joint:
            continue
        gap = joint[seed] - finetune[seed]
        if abs(gap) > _NO_GAP * max(abs(joint[seed]), abs(finetune[seed])):
            shares[seed] = 100 * (values[seed] - finetune[seed]) / gap
    return shares


def by_seed(runs: Iterable[Run], label: str, metric: str) -> dict[int, float]:
    """Return a metric of one label's runs, as far as it is defined."""
    return {
        run.seed: run.metrics[metric]
        for run in runs
        if run.label == label and metric in run.metrics
    }


def labels_of(runs: Iterable[Run]) -> list[str]:
    """Return the labels in the order of their first runs."""
    return list(dict.fromkeys(run.label for run in runs))


def summarise(
    runs: Sequence[Run], finetune: str = "finetune", joint: str = "joint"
) -> list[Summary]:
    """Put the runs of each label into one row.

    Args:
        runs: Finished runs; the rows come in the order of the labels' first runs.
        finetune: The label that the gap closed starts from.
        joint: The label that it leads to.
    """
    return [_summary(runs, label, finetune, joint) for label in labels_of(runs)]


def _summary(runs: Sequence[Run], label: str, finetune: str, joint: str) -> Summary:
    own = [run for run in runs if run.label == label]
    names = dict.fromkeys(name for run in own for name in run.metrics)
    measured = {name: list(by_seed(own, label, name).values()) for name in names}
    averages = [by_seed(runs, each, "average") for each in (label, finetune, joint)]
    measured["gap_closed"] = list(gap_closed(*averages).values())
    measured["seconds"] = [run.seconds for run in own]
    measured["hook_share"] = [
        100 * run.hook_seconds / run.seconds
        for run in own
        if run.hook_seconds is not None and run.seconds > 0
    ]
    stored = [run for run in own if run.extra_bytes is not None]
    measured["extra_bytes"] = [float(run.extra_bytes or 0) for run in stored]
    measured["memory_share"] = [
        100 * (run.extra_bytes or 0) / run.training_bytes for run in stored if run.training_bytes
    ]
    values = {name: confidence_interval(each) for name, each in measured.items() if each}
    first = own[0]
    return Summary(label, first.method, first.needs_old_data, first.swept, len(own), values)
