"""The page of the studies, ``benchmarks/results/real_models.md``."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from benchmarks.evidence.protocol import PLASTICITY_TOLERANCE
from benchmarks.real.general_ability import General, measured_in
from benchmarks.real.protocol import title_of
from benchmarks.real.runs import Study
from benchmarks.support.tables import table
from recall_lightning.compare.results import (
    RUN_FILE,
    Interval,
    Run,
    confidence_interval,
    load_run,
    paired_difference,
    summarise,
)
from recall_lightning.compare.tables import cell, cost_table

MADE_BY = "made_by.json"
"""In a study's folder: the ``command`` that its runs were made by, and the ``machine``."""

INTRODUCTION = """# Real models, real data

Models and texts as they lie in packages that anyone can install, trained by `recall-lightning
compare` with the recipes of `benchmarks/real/recipes`; no table of a study is typed. How settings
were chosen, on another seed than those reported, is written in [the protocol](../real/PROTOCOL.md):
`recall` is RecallCallback with its defaults, and each rival runs with the setting at which it
learned as much of the new tasks as RECALL did on the tuning seed; where the study's command says
`--untuned`, with its own defaults.

Mean ± 95 % interval over seeds (Student's t); differences are paired by seed. **Gain**: the share
of what fine-tuning gains on each task by training it, in percent. **Forgetting**: how much worse
earlier tasks are at the end than at their best since they were trained, in the score's unit.
**KL**: divergence of the model at the end from the model as it came, nats a token, on text that
the latter wrote itself. **News**: what the loss on English news rose by, nats a token. † reads data
of earlier tasks."""


@dataclass(frozen=True)
class Reported:
    """A run with what its table needs besides.

    Attributes:
        run: The run.
        before: Scores of all tasks before the first.
        command: ``recall-lightning fit …``.
        load: The machine's load average at its end, over a minute.
        general: What it left of the general ability; None of a run that did not measure it.
    """

    run: Run
    before: Sequence[float]
    command: str
    load: float
    general: General | None


Measure = Callable[[Reported], float | None]


def page(studies: Mapping[Study, Sequence[Reported]]) -> str:
    """Return the page.

    Args:
        studies: Each with its reported runs, method by method.
    """
    parts = [INTRODUCTION]
    for study, runs in studies.items():
        parts += _part(study, runs)
    return "\n\n".join(parts) + "\n"


def reported(study: Study) -> list[Reported]:
    """Read a study's runs on the reported seeds, as far as there are some, method by method."""
    folder, rows = study.out / study.name / "report", list(study.methods)
    found = []
    for file in folder.glob(f"*/seed_*/{RUN_FILE}"):
        run, content = load_run(file.parent), json.loads(file.read_text(encoding="utf-8"))
        if run.label in rows and run.seed in study.seeds:
            general = measured_in(file.parent)
            load = content["load_average"]
            found.append(Reported(run, content["before"], content["command"], load, general))
    return sorted(found, key=lambda each: (rows.index(each.run.label), each.run.seed))


def _part(study: Study, runs: Sequence[Reported]) -> list[str]:
    first, planned = runs[0].run, len(study.seeds)
    made = json.loads((study.out / study.name / MADE_BY).read_text(encoding="utf-8"))
    direction = "higher" if first.higher_is_better else "lower"
    summaries = summarise([each.run for each in runs])
    settings = [[each.label, f"`{_own_arguments(each.label, runs)}`"] for each in summaries]
    return [
        f"## {study.name}",
        f"{title_of(study.name)}. {first.monitor}, {direction} is better; tasks: "
        f"{', '.join(first.tasks)}; seeds {', '.join(map(str, study.seeds))}.",
        f"```\n{made['command']}\n```",
        _quality(runs, planned),
        _verdict(runs, planned),
        f"What it takes (on {made['machine']}; {_loads(runs)}):",
        cost_table(summaries, planned),
        "Settings:",
        table(["method", "setting"], settings),
        *_answers(runs),
    ]


def _loads(runs: Sequence[Reported]) -> str:
    """Say how busy the machine was over all runs."""
    loads = [each.load for each in runs]
    return f"load average {min(loads):.1f} to {max(loads):.1f}"


def _own_arguments(label: str, runs: Sequence[Reported]) -> str:
    """The arguments that a method's runs were given beside the recipe's."""
    command = next(each.command for each in runs if each.run.label == label)
    own = [pair for pair in pairwise(command.split()) if pair[0].startswith(f"--{label}.")]
    return " ".join(chain.from_iterable(own)) or "as it is"


def by_seed(runs: Iterable[Reported], label: str, measure: Measure) -> dict[int, float]:
    """Return a measure of one label's runs, as far as it is defined."""
    own = ((each.run.seed, measure(each)) for each in runs if each.run.label == label)
    return {seed: value for seed, value in own if value is not None and math.isfinite(value)}


def gained(run: Reported) -> float | None:
    """Return what the tasks' scores gained by their own training, over the model as it came."""
    after = [run.run.matrix[task][task] for task in range(len(run.before))]
    if None in after:
        return None
    return sum(map(float, after)) - sum(run.before)  # type: ignore[arg-type]


def shares(values: Mapping[int, float], whole: Mapping[int, float]) -> dict[int, float]:
    """Return values in percent of others of the same seed.

    Example:
        >>> shares({0: 1.0, 1: -3.0}, {0: 2.0, 1: -4.0})
        {0: 50.0, 1: 75.0}
    """
    return {seed: 100 * v / whole[seed] for seed, v in values.items() if whole.get(seed)}


def _metric(name: str) -> Measure:
    return lambda each: each.run.metrics.get(name)


def _divergence(each: Reported) -> float | None:
    return each.general.kl[-1] if each.general else None


def _news_lost(each: Reported) -> float | None:
    return each.general.news[-1] - each.general.news[0] if each.general else None


def _quality(runs: Sequence[Reported], planned: int) -> str:
    columns: dict[str, Measure] = {"forgetting": _metric("forgetting")}
    if any(each.general for each in runs):
        columns |= {"KL": _divergence, "news": _news_lost}
    columns["average"] = _metric("average")
    gains = {label: by_seed(runs, label, gained) for label in _labels(runs)}
    rows = []
    for label in _labels(runs):
        gain = confidence_interval(shares(gains[label], gains.get("finetune", {})).values())
        cells = [
            cell(confidence_interval(by_seed(runs, label, measure).values()), planned)
            for measure in columns.values()
        ]
        cells += [
            cell(_difference(runs, "recall", label, measure), planned, sign="+")
            for name, measure in columns.items()
            if name in ("forgetting", "KL")
        ]
        rows.append([_name(label, runs), cell(gain, planned, 1), *cells])
    compared = [f"{name}: recall − row" for name in columns if name in ("forgetting", "KL")]
    return table(["method", "gain, %", *columns, *compared], rows)


def _labels(runs: Sequence[Reported]) -> list[str]:
    return list(dict.fromkeys(each.run.label for each in runs))


def _name(label: str, runs: Sequence[Reported]) -> str:
    old = any(each.run.needs_old_data for each in runs if each.run.label == label)
    return f"{label} †" if old else label


def _difference(runs: Sequence[Reported], one: str, other: str, measure: Measure) -> Interval:
    if one == other:
        return confidence_interval([])
    return paired_difference(by_seed(runs, one, measure), by_seed(runs, other, measure))


def _verdict(runs: Sequence[Reported], planned: int) -> str:
    """Compare with the rival that forgets least of those that gain as much."""
    if "recall" not in _labels(runs):
        return ""
    gains = {label: by_seed(runs, label, gained) for label in _labels(runs)}
    own = confidence_interval(by_seed(runs, "recall", _metric("forgetting")).values())
    wanted = abs(confidence_interval(gains["recall"].values()).mean)
    found = []
    for label in _labels(runs):
        reads_old = any(each.run.needs_old_data for each in runs if each.run.label == label)
        gain = abs(confidence_interval(gains[label].values()).mean)
        if label != "recall" and not reads_old and gain >= (1 - PLASTICITY_TOLERANCE) * wanted:
            forgetting = by_seed(runs, label, _metric("forgetting")).values()
            found.append((confidence_interval(forgetting).mean, label))
    if not found:
        return "No other method without old data gains as much as recall, within 2 %."
    least, label = min(found)
    difference = _difference(runs, "recall", label, _metric("forgetting"))
    return (
        f"Of the methods without old data that gain as much as recall, at most 2 % less, {label} "
        f"forgets least: {least:.3f}, where recall forgets {own.mean:.3f}; paired difference "
        f"{cell(difference, planned, sign='+')}."
    )


def _answers(runs: Sequence[Reported]) -> list[str]:
    """What the model answers before, after fine-tuning and after RECALL, on the first seed."""
    first = {
        each.run.label: each.general.answers
        for each in reversed(runs)
        if each.general is not None and each.general.answers
    }
    if not {"finetune", "recall"} <= set(first):
        return []
    rows = [
        [plain["question"], plain["before"], plain.get("after", ""), ours.get("after", "")]
        for plain, ours in zip(first["finetune"], first["recall"], strict=True)
    ]
    heads = ["question", "before", "after fine-tuning", "after RECALL"]
    flat = [[" ".join(text.replace("|", "\\|").split()) for text in row] for row in rows]
    return [f"Answers (greedy, seed {runs[0].run.seed}):", table(heads, flat, names=4)]
