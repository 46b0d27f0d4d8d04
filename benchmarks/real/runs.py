"""What a study runs: trials on the tuning seed, then every method on the reported ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.choose import matched_value, rounded
from benchmarks.real.protocol import GIVEN, QUICK_METHODS, RECIPES, TRIALS, TUNING_SEED, seeds_of
from benchmarks.support.comparisons import compared
from recall_lightning.compare.results import Run

QUICK = ("--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1")


@dataclass(frozen=True)
class Study:
    """A recipe and where its runs go.

    Attributes:
        name: Of the recipe.
        out: Folder of all studies' runs.
        jobs: Runs at the same time.
        methods: What is run.
        quick: Whether to run a few batches of few settings, to see that it works.
        arguments: Of every run.
        tuned: Whether rivals are tuned to RECALL's plasticity; else all run with their defaults.
    """

    name: str
    out: Path
    jobs: int
    methods: tuple[str, ...]
    quick: bool = False
    arguments: tuple[str, ...] = ()
    tuned: bool = True

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are reported."""
        return seeds_of(self.name)[: 1 if self.quick else None]

    def tune(self) -> dict[str, str]:
        """Run trials on the tuning seed; return each method's setting, as ``--variant`` takes it.

        Those with trials get the value at which they are as plastic as RECALL with its defaults.
        """
        tuned = [method for method in self.methods if method in TRIALS and self.tuned]
        variants = {"recall": "recall:"} | {
            f"{method} {value:g}": _setting(method, value)
            for method in tuned
            for value in TRIALS[method].values[: 1 if self.quick else None]
        }
        trials = self._run("tune", variants, [TUNING_SEED]) if tuned else []
        plasticity = {
            run.label: run.metrics["plasticity"] for run in trials if "plasticity" in run.metrics
        }
        return {
            method: _matched(method, plasticity)
            if method in tuned
            else f"{method}:{GIVEN.get(method, '')}"
            for method in self.methods
        }

    def report(self, settings: Mapping[str, str]) -> list[Run]:
        """Run settings on the seeds that are reported."""
        return self._run("report", settings, self.seeds)

    def _run(self, stage: str, variants: Mapping[str, str], seeds: Sequence[int]) -> list[Run]:
        recipe, folder = RECIPES / f"{self.name}.yaml", self.out / self.name / stage
        arguments = (*(QUICK if self.quick else ()), *self.arguments)
        return compared(recipe, folder, variants, seeds, self.jobs, arguments)


def chosen_methods(named: str | None, quick: bool, known: Sequence[str]) -> tuple[str, ...]:
    """Return the methods to run, fine-tuning and RECALL among them.

    Args:
        named: What ``--methods`` was given.
        quick: Whether few are enough.
        known: All that there are.

    Raises:
        ValueError: For one that is none.

    Example:
        >>> chosen_methods("ewc", False, ["finetune", "l2", "ewc", "recall"])
        ('finetune', 'ewc', 'recall')
    """
    wanted = set(known) if named is None else {*named.split(","), "finetune", "recall"}
    if quick and named is None:
        wanted = set(QUICK_METHODS)
    unknown = wanted.difference(known)
    if unknown:
        raise ValueError(f"unknown methods {sorted(unknown)}: use {', '.join(known)}")
    return tuple(method for method in known if method in wanted)


def _setting(method: str, value: float) -> str:
    trials = TRIALS[method]
    given = f"{trials.given} " if trials.given else ""
    return f"{method}:{given}--{method}.{trials.argument} {rounded(value)}"


def _matched(method: str, plasticity: Mapping[str, float]) -> str:
    """Return a method's setting that is as plastic as RECALL on the tuning seed."""
    own = {
        value: plasticity[f"{method} {value:g}"]
        for value in TRIALS[method].values
        if f"{method} {value:g}" in plasticity
    }
    if not own:  # all of them diverged
        return f"{method}:"
    return _setting(method, matched_value(own, plasticity["recall"]))
