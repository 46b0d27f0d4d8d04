"""RECALL with its defaults beside the best of twenty settings that were chosen by hand.

    python -m benchmarks.chosen_by_hand [--study own_transformer] [--jobs 2]

Runs twenty settings of ``RecallCallback`` on a recipe of ``benchmarks/real/recipes`` with seeds
that are for choosing, takes the one with the best average, and runs that one, the defaults,
fine-tuning and joint training with the seeds that are reported. Needs the packages of
``make evidence-real``.
Writes ``benchmarks/results/chosen_by_hand.md``.
"""

import argparse
from pathlib import Path
from statistics import fmean

from benchmarks.real.protocol import RECIPES, seeds_of, studies, title_of
from benchmarks.support.comparisons import compared
from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning.compare.results import Summary, by_seed, paired_difference, summarise
from recall_lightning.compare.tables import cell

CHOOSING_SEEDS = (100, 101)
_AT_THE_END = "--recall.every 1.0"
_SUBSPACE = "--recall.end_rule KfacSubspace --recall.end_rule.new_inputs"
_IMPORTANCE = "--recall.rule KfacImportance --recall.rule.scale"
_UNIFORM = "--recall.rule Uniform --recall.rule.weight"
SETTINGS = (
    *(f"--recall.plasticity {share}" for share in (0.5, 0.7, 0.8, 0.9, 0.95)),
    _AT_THE_END,
    f"{_AT_THE_END} --recall.plasticity 0.8",
    f"{_AT_THE_END} --recall.plasticity 0.9",
    *(f"{_SUBSPACE} {new}" for new in (0.25, 0.5, 2.0, 4.0, 8.0)),
    f"{_IMPORTANCE} 0.02",
    f"{_IMPORTANCE} 0.02 {_SUBSPACE} 8.0",
    f"{_IMPORTANCE} 0.05 {_SUBSPACE} 4.0",
    "--recall.rule importance",
    "--recall.rule subspace",
    f"{_UNIFORM} 0.05 --recall.end_rule never",
    f"{_UNIFORM} [0.6,0.3] {_AT_THE_END}",
)
"""Arguments of ``recall-lightning fit``: the balance, how often is merged, and by which rule."""
DEFAULTS, CHOSEN = "recall", "chosen"


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chosen_by_hand")
    parser.add_argument("--study", choices=studies(), default="own_transformer")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/chosen_by_hand"))
    given = parser.parse_args()
    recipe, folder = RECIPES / f"{given.study}.yaml", given.out / given.study
    seeds = seeds_of(given.study)

    variants = {f"setting_{number}": f"recall:{own}" for number, own in enumerate(SETTINGS, 1)}
    tried = compared(recipe, folder / "choose", variants, CHOOSING_SEEDS, given.jobs)
    means = {label: fmean(by_seed(tried, label, "average").values()) for label in variants}
    better = max if tried[0].mode == "max" else min
    best = better(means, key=means.__getitem__)

    shown = {
        "finetune": "finetune:",
        DEFAULTS: "recall:",
        CHOSEN: variants[best],
        "joint": "joint:",
    }
    runs = compared(recipe, folder / "report", shown, seeds, given.jobs)

    def row(own: Summary) -> list[str]:
        name = f"`{shown[CHOSEN].removeprefix('recall:')}`" if own.label == CHOSEN else own.label
        closed = own.label in (DEFAULTS, CHOSEN)
        gap = cell(own.value("gap_closed"), len(seeds), 1) if closed else "–"
        return [name, cell(own.value("average"), len(seeds)), gap]

    pair = (by_seed(runs, label, "average") for label in (DEFAULTS, CHOSEN))
    difference = cell(paired_difference(*pair), len(seeds), sign="+")
    write_page(
        "chosen_by_hand",
        "# Defaults beside settings that were chosen by hand\n\n"
        f"{title_of(given.study)}. Twenty settings ran with the seeds "
        f"{', '.join(map(str, CHOOSING_SEEDS))}; the one with the best average after the last task "
        f"ran with the seeds {', '.join(map(str, seeds))}, as did the defaults. Mean ± 95 % "
        "interval over seeds (Student's t); gap closed: the part of the way from fine-tuning to "
        "joint training.",
        machine(),
        table(["setting", runs[0].monitor, "gap closed, %"], [row(own) for own in summarise(runs)]),
        f"Defaults above the setting that was chosen, paired by seed: {difference}.",
        "## The twenty, on the seeds for choosing",
        table(
            ["setting", "mean average"],
            [
                [f"`{own}`", f"{means[f'setting_{number}']:.3f}"]
                for number, own in enumerate(SETTINGS, 1)
            ],
        ),
    )


if __name__ == "__main__":
    main()
