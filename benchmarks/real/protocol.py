"""The protocol of the studies on real models, fixed before any run: methods, trials and seeds."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.evidence.protocol import TUNED, Trials
from recall_lightning.methods import FILES

RECIPES = Path("benchmarks/real/recipes")  # seen from the repository's folder
TUNING_SEED = 100
SEEDS: Mapping[str, tuple[int, ...]] = {"smollm2": (0, 1, 2)}
"""Seeds that are reported, by how the study's name begins; of all others:"""
MOST_SEEDS = (0, 1, 2, 3, 4)

LEFT_OUT = ("low_lr", "hft", "adaptive", "recall_paper_loop")
"""Methods that no study runs, to save time."""

TRIALS: Mapping[str, Trials] = {
    method: trials for method, trials in TUNED.items() if method not in (*LEFT_OUT, "recall")
} | {
    "ewc_lora": Trials("strength", (1.0, 10.0, 100.0, 1000.0)),
    "kfac_penalty": Trials("strength", (0.1, 1.0, 10.0, 100.0)),
    "self_replay": Trials("strength", (0.1, 0.3, 1.0, 3.0)),
}
"""What is tuned to RECALL's plasticity: one argument with four values, of those that there are."""

GIVEN: Mapping[str, str] = {"replay": "--replay.per_task 100"}
"""Arguments of methods that have nothing to tune; RECALL has none."""

QUICK_METHODS = ("finetune", "l2", "recall")
SMALLEST = "smollm2_lora"
"""What ``--quick`` runs where no study is named."""


def studies() -> list[str]:
    """Return the names of all studies: a recipe each."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != "defaults")


def methods() -> list[str]:
    """Return the methods that studies run, in the order of tables: all that there are, but few."""
    return [method for method in FILES if method not in LEFT_OUT]


def seeds_of(study: str) -> tuple[int, ...]:
    """Return the seeds that a study is reported on.

    Example:
        >>> seeds_of("smollm2_lora"), len(seeds_of("minilm"))
        ((0, 1, 2), 5)
    """
    own = (seeds for start, seeds in SEEDS.items() if study.startswith(start))
    return next(own, MOST_SEEDS)


def title_of(study: str) -> str:
    """Return what a study is: the first line of its recipe, a comment."""
    first = (RECIPES / f"{study}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip().rstrip(".")
