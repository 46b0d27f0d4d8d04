"""The report of a comparison: means of all runs, and one run a method in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recall_lightning.compare.pareto import pareto_figure
from recall_lightning.compare.plan import Comparison, PlannedRun, unfinished
from recall_lightning.compare.progress import duration
from recall_lightning.compare.results import Run, Summary
from recall_lightning.compare.tables import cell
from recall_lightning.report.page import (
    FILE_NAME,
    METRICS,
    METRICS_NOTE,
    Cell,
    Overview,
    Picture,
    Table,
    damage_is_said,
    report_page,
)
from recall_lightning.report.run import read_run
from recall_lightning.weights.atomic import write_whole


def write_page(
    comparison: Comparison,
    planned: Sequence[PlannedRun],
    runs: Sequence[Run],
    summaries: Sequence[Summary],
) -> Path:
    """Write ``report.html`` into a comparison's folder.

    A page of all runs would be read by nobody: means and intervals are of all of them, and of each
    row of the tables one run is shown, with the seed that most rows have.

    Args:
        comparison: What is compared.
        planned: All of its runs.
        runs: Those that have finished, at least one.
        summaries: Of those, a row each.

    Returns:
        The file.

    Raises:
        ValueError: If a run's folder does not hold what it should.
        OSError: If something cannot be read or written.
    """
    shown = shown_seeds(runs)
    usual = max(shown.values(), key=list(shown.values()).count)
    folders = {(run.setting.label, run.seed): run.folder for run in planned}
    names = {row: row if seed == usual else f"{row}, seed {seed}" for row, seed in shown.items()}
    with damage_is_said():
        read = [read_run(folders[row, seed], names[row]) for row, seed in shown.items()]
    drawn = pareto_figure(summaries, runs[0].monitor, runs[0].higher_is_better)
    label = "Forgetting over plasticity of each method, means with 95 % intervals."
    pictures = [] if drawn is None else [Picture("Forgetting and plasticity", label, drawn)]
    recipes = ", ".join(Path(recipe).stem for recipe in comparison.recipes)
    overview = Overview(
        f"{recipes}: {len(summaries)} method{'s' * (len(summaries) > 1)}",
        _table(runs, summaries, len(comparison.seeds)),
        pictures,
        _notes(comparison, planned, runs, usual),
    )
    file = comparison.out / FILE_NAME
    with damage_is_said():
        page = report_page(read, overview)
    write_whole(file, page)
    return file


def shown_seeds(runs: Sequence[Run]) -> dict[str, int]:
    """Return the seed with which each row of the tables is shown.

    The same data in the same order makes runs comparable, so it is the seed that most rows have, of
    several such the first; a row without it has its own first.

    Args:
        runs: Finished runs, in the order of the rows.
    """
    seeds = [run.seed for run in runs]
    usual = min(set(seeds), key=lambda seed: (-seeds.count(seed), seed))
    own: dict[str, list[int]] = {}
    for run in runs:
        own.setdefault(run.label, []).append(run.seed)
    return {row: usual if usual in found else min(found) for row, found in own.items()}


def _table(runs: Sequence[Run], summaries: Sequence[Summary], planned: int) -> Table:
    has_gap = any(row.value("gap_closed").count for row in summaries)
    rows = []
    for row in summaries:
        cells = [cell(row.value(name), planned) for name in METRICS]
        cells += [cell(row.value("gap_closed"), planned, 1)] * has_gap
        cells += [duration(row.value("seconds").mean), "yes" if row.needs_old_data else "no"]
        rows.append((row.label, [Cell(text.replace("-", "−")) for text in cells]))
    better = "higher" if runs[0].higher_is_better else "lower"
    of_seeds = f"means of {planned} seeds ± 95 % intervals" if planned > 1 else "one seed"
    note = METRICS_NOTE + (
        f" In brackets: of how many seeds, where it is not {planned}." if planned > 1 else ""
    )
    if has_gap:
        note += " Gap closed: how much of the way from fine-tuning to joint training it goes."
    columns = ["method", *METRICS, *["gap closed (%)"] * has_gap, "time a run", "needs old data"]
    caption = f"{runs[0].monitor} ({better} is better), {of_seeds}"
    return Table(caption, columns, rows, note=note)


def _notes(
    comparison: Comparison, planned: Sequence[PlannedRun], runs: Sequence[Run], usual: int
) -> list[str]:
    missing = unfinished(planned, runs)
    notes = []
    if len(comparison.seeds) > 1:
        notes.append(
            f"The table is of all runs. What follows it is of one run of each method, that with "
            f"seed {usual}, unless another is named."
        )
    return [*notes, missing] if missing else notes
