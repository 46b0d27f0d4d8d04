"""The tables of a comparison: ``results.csv`` and ``results.md``."""

import csv
import io
import math
from collections.abc import Sequence

from recall_lightning.compare.results import (
    Interval,
    Run,
    Summary,
    by_seed,
    paired_difference,
)

_SCORES = ("average", "forgetting", "plasticity", "backward_transfer")
_MIB = 2**20
_VARIANTS = {
    "since_trained": "the best score from the task's own training on, against the last",
    "any_time": "the best score at any time before, against the last",
    "first_minus_last": "the score right after the task's own training, against the last",
}


def csv_table(runs: Sequence[Run]) -> str:
    """Return one line a run: every metric, every cost and every value of a sweep.

    Args:
        runs: Finished runs. What a run does not have is an empty field.
    """
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    swept = list(dict.fromkeys(name for run in runs for name in run.swept))
    costs = (
        "seconds",
        "threads",
        "hook_seconds",
        "extra_bytes",
        "training_bytes",
        "needs_old_data",
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "method", "seed", *metrics, *costs, *swept])
    for run in runs:
        measured = [run.metrics.get(name) for name in metrics]
        spent = [getattr(run, name) for name in costs]
        chosen = [run.swept.get(name) for name in swept]
        writer.writerow([run.label, run.method, run.seed, *measured, *spent, *chosen])
    return text.getvalue()


def markdown(
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    command: str,
    seeds: Sequence[int],
    circumstances: str,
    missing: str = "",
) -> str:
    """Return the whole of ``results.md``.

    Args:
        runs: Finished runs, at least one.
        summaries: Of those runs, in the order of the rows.
        command: What was typed.
        seeds: All that were asked for.
        circumstances: The machine and its load, as a sentence.
        missing: Which runs have not finished, as a sentence.
    """
    first = runs[0]
    planned = len(seeds)
    direction = "higher" if first.higher_is_better else "lower"
    variant = _VARIANTS.get(first.forgetting_variant, "")
    parts = [
        f"```\n{command}\n```",
        f"{first.monitor}, {direction} is better; tasks: {', '.join(first.tasks)}; seeds "
        f"{', '.join(map(str, seeds))}. Forgetting: {first.forgetting_variant} ({variant}); less "
        "is better, whatever the score. Mean ± 95 % interval over seeds (Student's t); in brackets "
        f"of how many where it is not {planned}. {circumstances}",
        *([missing] if missing else []),
        score_table(summaries, planned),
    ]
    if len(summaries) > 1:
        parts += [
            f"Difference to {summaries[0].label}, seed by seed:",
            difference_table(runs, summaries, planned),
        ]
    parts += ["What it takes:", cost_table(summaries, planned), *_notes(runs, summaries)]
    return "\n\n".join(parts) + "\n"


def score_table(summaries: Sequence[Summary], planned: int) -> str:
    """Return average, forgetting, plasticity, backward transfer and gap closed as Markdown.

    Args:
        summaries: The rows.
        planned: Number of seeds; a cell with fewer says so.
    """
    rows = [
        [
            _name(row),
            *(cell(row.value(name), planned) for name in _SCORES),
            cell(row.value("gap_closed"), planned, 1),
        ]
        for row in summaries
    ]
    heads = [name.replace("_", " ") for name in _SCORES]
    return _table(["method", *heads, "gap closed, %"], rows)


def difference_table(runs: Sequence[Run], summaries: Sequence[Summary], planned: int) -> str:
    """Return how average and forgetting differ from the first row's, over equal seeds."""
    metrics = ("average", "forgetting")
    reference = summaries[0].label
    rows = []
    for row in summaries[1:]:
        pairs = [(by_seed(runs, row.label, m), by_seed(runs, reference, m)) for m in metrics]
        rows.append(
            [_name(row), *(cell(paired_difference(*pair), planned, sign="+") for pair in pairs)]
        )
    return _table(["method", *metrics], rows)


def cost_table(summaries: Sequence[Summary], planned: int) -> str:
    """Return seconds, the share of them inside the method's hooks, and its memory."""
    rows = []
    for row in summaries:
        stored = row.value("extra_bytes")
        size = Interval(stored.mean / _MIB, stored.half_width / _MIB, stored.count)
        rows.append(
            [
                _name(row),
                cell(row.value("seconds"), planned, 1),
                cell(row.value("hook_share"), planned, 2),
                "–" if not stored.count else _short(size.mean),
                "–" if not stored.count else _short(row.value("memory_share").mean),
                "yes" if row.needs_old_data else "no",
            ]
        )
    heads = ["seconds", "in hooks, %", "extra memory, MiB", "of training memory, %"]
    return _table(["method", *heads, "needs old data"], rows)


def cell(interval: Interval, planned: int, digits: int = 3, sign: str = "") -> str:
    """Write an interval as text.

    Example:
        >>> cell(Interval(0.5, 0.125, 3), planned=3)
        '0.500 ± 0.125'
        >>> cell(Interval(0.5, math.nan, 1), planned=3, digits=1, sign="+")
        '+0.5 (1)'
    """
    if not interval.count:
        return "–"
    text = f"{interval.mean:{sign}.{digits}f}"
    if not math.isnan(interval.half_width):
        text += f" ± {interval.half_width:.{digits}f}"
    return text if interval.count == planned else f"{text} ({interval.count})"


def threads_of(runs: Sequence[Run]) -> str:
    """Say what the runs' seconds are seconds of."""
    numbers = sorted({run.threads for run in runs})
    return f"{' or '.join(map(str, numbers))} thread{'s' * (numbers != [1])}"


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _name(row: Summary) -> str:
    text = row.label.replace("|", "\\|")
    return f"{text} †" if row.needs_old_data else text


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _notes(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[str]:
    notes = []
    if any(row.needs_old_data for row in summaries):
        notes.append("† reads data of earlier tasks.")
    notes.append(
        f"Seconds: wall time of training with validation, {threads_of(runs)} a run. In hooks: the "
        "part inside the method's own callback. Extra memory: the tensors of its state after the "
        "last task, and stored samples; training memory: parameters, gradients and optimizer state."
    )
    starts: dict[int, set[str]] = {}
    for run in runs:
        starts.setdefault(run.seed, set()).add(run.initial_weights)
    unequal = [str(seed) for seed, found in sorted(starts.items()) if len(found) > 1]
    if unequal:
        notes.append(
            f"Not all methods started from the same weights with seed {', '.join(unequal)}: the "
            "differences above are not of equal starts."
        )
    return notes
