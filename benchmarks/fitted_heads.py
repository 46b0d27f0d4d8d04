"""What it brings to fit a classifier's last layer anew after a merge, on pre-trained models.

    python -m benchmarks.fitted_heads [--study minilm_lora] [--seeds 0,1] [--jobs 2]

Runs ``RecallCallback`` with its defaults and with ``refit_head=False`` on recipes of
``benchmarks/real/recipes``, in pairs of one seed. Needs the packages of ``make evidence-real``.
Writes ``benchmarks/results/fitted_heads.md``.
"""

import argparse
from pathlib import Path

from benchmarks.real.protocol import RECIPES, seeds_of, studies, title_of
from benchmarks.support.comparisons import compared
from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning.compare.results import Run, by_seed, paired_difference, summarise
from recall_lightning.compare.tables import cell

STUDIES = ("minilm_lora", "efficientnet")
VARIANTS = {"recall": "recall:", "as_merged": "recall:--recall.refit_head false"}
SHOWN = {"recall": "fitted anew, the default", "as_merged": "`refit_head=False`"}
METRICS = ("average", "forgetting", "plasticity")


def rows_of(study: str, runs: list[Run], seeds: list[int]) -> list[list[str]]:
    """Return a study's rows: both variants, and their difference on the same seeds."""
    rows = []
    for own in summarise(runs):
        cells = [cell(own.value(metric), len(seeds)) for metric in METRICS]
        rows.append([study, SHOWN[own.label], *cells])
    differences = [
        paired_difference(*(by_seed(runs, label, metric) for label in VARIANTS))
        for metric in METRICS
    ]
    signed = [cell(each, len(seeds), sign="+") for each in differences]
    return [*rows, [study, "difference", *signed]]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitted_heads")
    parser.add_argument("--study", choices=studies(), action="append", help="may be given again")
    parser.add_argument("--seeds", help="such as 0,1; by default those of the protocol")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/fitted_heads"))
    given = parser.parse_args()

    rows, titles = [], []
    for study in given.study or STUDIES:
        seeds = [int(seed) for seed in (given.seeds or "").split(",") if seed] or seeds_of(study)
        recipe = RECIPES / f"{study}.yaml"
        runs = compared(recipe, given.out / study, VARIANTS, seeds, given.jobs)
        rows += rows_of(study, runs, list(seeds))
        titles.append(f"`{study}`, seeds {', '.join(map(str, seeds))}: {title_of(study)}.")
    write_page(
        "fitted_heads",
        "# A classifier's last layer, fitted anew\n\n"
        "`RecallCallback` with its defaults, which after the merge at a task's end fit the last "
        "layer to what it predicted of inputs as earlier tasks had them and of the task's last "
        "batches, and without that. Mean ± 95 % interval over seeds (Student's t); differences "
        "are paired by seed.",
        machine(),
        table(["study", "last layer", *METRICS], rows, names=2),
        *titles,
    )


if __name__ == "__main__":
    main()
