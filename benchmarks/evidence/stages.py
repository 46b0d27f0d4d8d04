"""What is run: each stage is one ``recall-lightning compare``, which skips what is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.evidence.choose import best_value, interpolated, matched_value, rounded
from benchmarks.evidence.protocol import (
    COMPARED,
    MANY_TASKS,
    MANY_TASKS_EPOCHS,
    MANY_TASKS_METHODS,
    MANY_TASKS_SEEDS,
    MATCHED_ROWS,
    ORDER,
    PLASTICITY_TOLERANCE,
    QUICK_STREAMS,
    REPLAY,
    REPORT_SEEDS,
    STREAMS,
    TUNED,
    TUNING_SEEDS,
    UNTUNED,
    Ablations,
    Stream,
)
from benchmarks.support.comparisons import compared
from recall_lightning.compare.results import Run, confidence_interval

MATCHED = " at matched plasticity"
QUICK = ("--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1")


@dataclass(frozen=True)
class Evidence:
    """Where runs go and how many there are.

    Attributes:
        out: Folder of all runs.
        jobs: Runs at the same time.
        quick: Whether to run a few batches of less of everything, to see that it works.
    """

    out: Path
    jobs: int
    quick: bool

    @property
    def streams(self) -> list[Stream]:
        """The streams to compare on."""
        return [s for s in STREAMS if not self.quick or s.name in QUICK_STREAMS]

    def seeds(self, full: Sequence[int]) -> Sequence[int]:
        """Return the seeds to run."""
        return full[:1] if self.quick else full

    def compare(
        self,
        stream: str,
        stage: str,
        variants: Mapping[str, str],
        seeds: Sequence[int],
        extra: Sequence[str] = (),
    ) -> list[Run]:
        """Run variants (label to ``METHOD:ARGUMENTS``) of a recipe, and return all runs."""
        recipe, folder = f"recipes/{stream}.yaml", self.out / stream / stage
        arguments = (*_arguments(stream, self.quick), *extra)
        return compared(recipe, folder, variants, self.seeds(seeds), self.jobs, arguments)


def _arguments(stream: str, quick: bool) -> tuple[str, ...]:
    text = stream == "stdlib_text"
    # the recipe validates four times an epoch, for its figure
    checked = ("--trainer.val_check_interval", "1.0") if text else ()
    if not quick:
        return checked
    checked = checked or ("--trainer.check_val_every_n_epoch", "1")
    return (*QUICK, *checked, "--data.init_args.epochs_per_task", "1")


def tune(evidence: Evidence, stream: Stream) -> list[Run]:
    """Run every method's trials on the tuning seeds."""
    variants = {
        f"{method} {value:g}": setting(method, value)
        for method in TUNED
        if method not in stream.left_out
        for value in _trials(method, evidence.quick)
    }
    return evidence.compare(stream.name, "tune", variants, TUNING_SEEDS)


def _trials(method: str, quick: bool) -> tuple[float, ...]:
    """Return a method's trials; of the quick form one, and RECALL's default."""
    values = TUNED[method].values
    if not quick:
        return values
    return (DEFAULT_NEW_INPUTS,) if method == "recall" else values[-1:]


def setting(method: str, value: float) -> str:
    """Return a method with a value of what it is tuned over, as ``compare --variant`` takes it."""
    trials = TUNED[method]
    given = f"{trials.given} " if trials.given else ""
    return f"{method}:{given}--{method}.{trials.argument} {rounded(value)}"


def _means(tuning: Sequence[Run], method: str, metric: str) -> dict[float, float]:
    """Return a metric's mean by trial; without those that diverged, whose metrics are missing."""
    means = {}
    for value in TUNED[method].values:
        runs = [run for run in tuning if run.label == f"{method} {value:g}"]
        if runs and all(metric in run.metrics for run in runs):
            means[value] = confidence_interval(run.metrics[metric] for run in runs).mean
    return means


def choose(tuning: Sequence[Run], stream: Stream) -> dict[str, str]:
    """Choose every method's setting by its average score on the tuning seeds.

    Some baselines that RECALL is measured against have a second one, of RECALL's plasticity there.

    Returns:
        Label to setting; ``recall`` is RecallCallback as it is. What tuning would have chosen is
        ``recall tuned``, where that is another value.
    """
    higher = tuning[0].higher_is_better
    chosen = {
        method: setting(method, best_value(_means(tuning, method, "average"), higher))
        for method in TUNED
        if method not in stream.left_out
    }
    labels = {
        **{method: f"{method}:{REPLAY if method == 'replay' else ''}" for method in UNTUNED},
        **chosen,
        "recall": "recall:",
    }
    ordered = {method: labels[method] for method in ORDER if method in labels}
    if chosen["recall"] != setting("recall", DEFAULT_NEW_INPUTS):
        ordered["recall tuned"] = chosen["recall"]
    if stream.domain_incremental:
        ordered |= _matched(tuning, chosen)
    return ordered


def _matched(tuning: Sequence[Run], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the settings at which baselines are as plastic as RECALL on the tuning seeds.

    Of those that forget least there, and not where the chosen setting is as plastic anyway.
    """
    wanted = _means(tuning, "recall", "plasticity")[DEFAULT_NEW_INPUTS]
    found = {}
    for method in [each for each in COMPARED if each in chosen]:  # the others are not for its kind
        plasticity = _means(tuning, method, "plasticity")
        value = matched_value(plasticity, wanted)
        found[method] = (interpolated(_means(tuning, method, "forgetting"), value), value)
    rows = {}
    for method in sorted(found, key=lambda method: found[method][0])[:MATCHED_ROWS]:
        plasticity = _means(tuning, method, "plasticity")
        reached = next(v for v in plasticity if setting(method, v) == chosen[method])
        if abs(plasticity[reached] - wanted) > PLASTICITY_TOLERANCE / 2 * abs(wanted):
            rows[method + MATCHED] = setting(method, found[method][1])
    return rows


DEFAULT_NEW_INPUTS = 1.0
"""RecallCallback's own value, which is among those that it is tuned over."""


def report(evidence: Evidence, stream: Stream, chosen: Mapping[str, str]) -> list[Run]:
    """Run the chosen settings on the seeds that are reported."""
    return evidence.compare(stream.name, "report", chosen, REPORT_SEEDS)


def ablate(evidence: Evidence, ablations: Ablations) -> dict[str, list[Run]]:
    """Run ablations on tuning seeds; return the runs of each table, by its heading."""
    rows = {
        (title, row): arguments
        for title, table in ablations.tables.items()
        for row, arguments in list(table.items())[: 1 if evidence.quick else None]
    }
    labels: dict[str, str] = {}  # setting to the label that it runs under
    for (title, row), arguments in rows.items():
        labels.setdefault(arguments, f"{title}: {row}")
    variants = {label: arguments for arguments, label in labels.items()}
    runs = evidence.compare(ablations.stream, ablations.stage, variants, ablations.seeds)
    tables: dict[str, list[Run]] = {}
    for (title, row), arguments in rows.items():
        own = [replace(run, label=row) for run in runs if run.label == labels[arguments]]
        tables.setdefault(f"{title} ({ablations.stream})", []).extend(own)
    return tables


def many_tasks(evidence: Evidence, chosen: Mapping[str, Mapping[str, str]]) -> dict[str, list[Run]]:
    """Run ten tasks instead of five, with the settings chosen for five."""
    runs = {}
    for stream in [name for name in MANY_TASKS if name in chosen]:
        variants = {method: chosen[stream][method] for method in MANY_TASKS_METHODS}
        epochs = "1" if evidence.quick else MANY_TASKS_EPOCHS[stream]
        extra = ("--data.init_args.num_tasks", "10", "--data.init_args.epochs_per_task", epochs)
        runs[stream] = evidence.compare(
            stream, "ten_tasks", variants, MANY_TASKS_SEEDS[stream], extra
        )
    return runs
