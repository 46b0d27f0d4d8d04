"""The command ``recall-lightning compare``: a recipe by several methods and seeds, tabulated."""

import fcntl
import json
import os
import re
import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recall_lightning.cli.arguments import RaisingParser, refuse
from recall_lightning.compare.grid import Failure, cores, run_all, start_server, threads_per_run
from recall_lightning.compare.plan import (
    Comparison,
    PlannedRun,
    normal_recipes,
    parse_seeds,
    parse_settings,
    unfinished,
)
from recall_lightning.compare.progress import Progress, duration
from recall_lightning.compare.results import (
    COMPARISON_FILE,
    RUN_FILE,
    load_run,
    summarise,
)
from recall_lightning.compare.tables import cell, csv_table, markdown, threads_of
from recall_lightning.methods import FILES
from recall_lightning.plugins import plugin_packages
from recall_lightning.weights.atomic import write_whole

_PROGRAM = "recall-lightning compare"
_TABLES = ("results.md", "results.csv", "pareto.png", "report.html")
_EPILOG = """\
example: three methods, one of them with two strengths, five seeds each, two runs at a time

  recall-lightning compare -c recipes/digits_rotated.yaml --methods finetune,joint,recall \\
      --sweep ewc.strength=10,100 --seeds 5 --jobs 2 --out runs/rotated

and then with an ablation, without repeating what is done:

  ... --variant "uniform=recall:--recall.rule Uniform --recall.rule.weight 0.2"

Into --out go results.md and results.csv, after every run again, at the end pareto.png and
report.html, which has one run of each method in full, and a folder a run.
What follows -- goes to recall-lightning fit of every run, as in:
-- --data.epochs_per_task 1 --trainer.check_val_every_n_epoch 1
"""


def compare_parser() -> ArgumentParser:
    """Build the command's parser.

    Example:
        >>> compare_parser().parse_args(["-c", "a.yaml", "--out", "b", "--seeds", "3"]).seeds
        '3'
    """
    parser = RaisingParser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} -c RECIPE --methods A,B --seeds N --out DIR [options] [-- ARGUMENTS]",
        description="Train a recipe with several methods and seeds, each run in a process of its "
        "own, and write tables with confidence intervals. Started again, it skips what is done on "
        "the same recipe, data, code and versions.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what is compared").add_argument
    add(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="RECIPE",
        help="YAML file as for recall-lightning fit; given again, one on top of the other.",
    )
    add(
        "--methods",
        default="finetune,recall",
        help=f"Some of {', '.join(_methods().values())} (finetune,recall). Differences are to the "
        "first.",
    )
    add(
        "--seeds",
        default="5",
        help="How many, or which: 0,3,7 (5). A seed gives every method the same data in the same "
        "order and the same first weights.",
    )
    add("--first-seed", type=int, default=0, help="Where a number of seeds begins (0).")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="METHOD.ARG=V1,V2",
        help="The method with each value, instead of the plain one; several of one method are "
        "multiplied.",
    )
    add(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=METHOD:ARGS",
        help="A method with other arguments, under a label of its own.",
    )
    add = parser.add_argument_group("how it is run").add_argument
    add(
        "--jobs",
        type=int,
        default=1,
        help="Runs at the same time (1). Each computes with OMP_NUM_THREADS threads, or one.",
    )
    add("--out", metavar="DIR", help="Folder for everything that is written.")
    add(
        "--joint-reference",
        metavar="LABEL",
        help="What counts as the whole gap to finetune, in the gap closed (joint).",
    )
    return parser


def _methods() -> dict[str, str]:
    """Return the methods there are by name, each as the help calls it; nothing is imported."""
    others = plugin_packages("methods").items()
    packaged = {name: f"{name} (of {package})" for name, package in others if name not in FILES}
    return {name: name for name in FILES} | packaged


def main(args: Sequence[str]) -> None:
    """Run the command.

    Exit codes: 1 if a run failed, 2 if nothing could be run, with one line on stderr that says why,
    130 for Ctrl-C.

    Args:
        args: The command line after ``compare``.
    """
    try:
        options, extra = _parse(args)
        comparison = _comparison(options, extra)
        _check_folder(comparison)
        runs = comparison.runs()
        todo = {run.setting.label: run for run in reversed(runs) if not run.done}
        if todo:
            start_server(_model_modules(comparison.recipes))
            from recall_lightning.compare.check import check_commands  # while the server imports

            check_commands([run for run in runs if run is todo.get(run.setting.label)])
        with _claimed(comparison):
            failures = _run(comparison, runs, options.jobs, shlex.join([*_PROGRAM.split(), *args]))
    except (ValueError, OSError) as error:
        refuse(_PROGRAM, error)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure.reason}; see {failure.log}", file=sys.stderr)
    if failures:
        print("the same command tries them again, and skips what is done", file=sys.stderr)
        raise SystemExit(1)


def _parse(args: Sequence[str]) -> tuple[Namespace, list[str]]:
    args = list(args)
    split = args.index("--") if "--" in args else len(args)
    options = compare_parser().parse_args(args[:split])
    if not options.out:
        raise ValueError("no output folder: name one, such as --out runs/comparison")
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs} must be 1 or more")
    if options.first_seed < 0:
        raise ValueError(f"--first-seed {options.first_seed} must be 0 or more")
    threads_per_run()  # of an environment that says something else than a number
    return options, args[split + 1 :]


def _comparison(options: Namespace, extra: list[str]) -> Comparison:
    for word in extra:
        if re.match(r"(-c|--config)(=|$)", word):
            raise ValueError(f"{word} stands after --: name all recipes by -c before it")
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    settings = parse_settings(methods, options.sweep, options.variant, list(_methods()))
    joint = options.joint_reference
    labels = [setting.label for setting in settings]
    if joint is not None and joint not in labels:
        raise ValueError(
            f"--joint-reference {joint!r} must be one of the rows: {', '.join(labels)}"
        )
    return Comparison(
        recipes=normal_recipes(options.config),
        settings=settings,
        seeds=parse_seeds(options.seeds, options.first_seed),
        out=Path(options.out),
        arguments=tuple(extra),
        joint=joint or "joint",
    )


def _model_modules(recipes: Sequence[str]) -> list[str]:
    """Return the modules of the transformers that the recipes name."""
    text = "\n".join(Path(recipe).read_text(errors="replace") for recipe in recipes)
    kinds = dict.fromkeys(re.findall(r"^\s*model_type: *(\w+)", text, re.MULTILINE))
    return [f"transformers.models.{kind}.modeling_{kind}" for kind in kinds]


def _check_folder(comparison: Comparison) -> None:
    """Check that the output folder is free, or holds the same comparison.

    Raises:
        ValueError: If it does not.
    """
    out = comparison.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is no folder: name another")
    file = out / COMPARISON_FILE
    if not file.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"--out {out} holds something else: name a folder that is empty")
        return
    try:
        content = json.loads(file.read_text() or "null")
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it if the runs beside it are of this comparison, "
            "or name another folder"
        ) from error
    ours = _identity(comparison)
    if not content or all(content[name] == ours[name] for name in ours):
        return
    if not any(out.glob(f"*/seed_*/{RUN_FILE}")):
        return  # nothing came of it
    what = shlex.join([*content["recipes"], *content["arguments"]])
    raise ValueError(f"--out {out} holds a comparison of {what}: name another folder")


def _identity(comparison: Comparison) -> dict[str, list[str]]:
    """What all runs in a folder have in common."""
    return {"recipes": list(comparison.recipes), "arguments": list(comparison.arguments)}


@contextmanager
def _claimed(comparison: Comparison) -> Iterator[None]:
    """Hold the output folder against other commands.

    Raises:
        ValueError: If it is in use, or not this comparison's.
    """
    comparison.out.mkdir(parents=True, exist_ok=True)
    with (comparison.out / COMPARISON_FILE).open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--out {comparison.out} is in use by another comparison: wait for it, or name "
                "another folder"
            ) from error
        _check_folder(comparison)  # once more: another command may have had it meanwhile
        content = _identity(comparison) | {"state": dict(comparison.state().parts)}
        held.truncate(0)
        held.write(json.dumps(content, indent=1) + "\n")
        held.flush()
        yield


class _Reporter:
    """Tells the progress table of runs, and writes the tables of results after each."""

    def __init__(
        self,
        comparison: Comparison,
        planned: Sequence[PlannedRun],
        progress: Progress,
        jobs: int,
        command: str,
    ) -> None:
        self.comparison, self.planned, self.progress = comparison, planned, progress
        self.jobs, self.command = jobs, command

    def started(self, run: PlannedRun) -> None:
        self.progress.started(run)

    def ended(self, run: PlannedRun, failure: Failure | None, seconds: float) -> None:
        if failure is not None:
            self.progress.failed(run, failure)
            return
        self.progress.finished(run, load_run(run.folder), seconds)
        self.write()

    def write(self, last: bool = False) -> None:
        """Write the tables of what is there, and at last figure and report, which take seconds."""
        rows = [setting.label for setting in self.comparison.settings]
        runs = sorted(self.progress.results, key=lambda run: (rows.index(run.label), run.seed))
        if not runs:
            return
        out = self.comparison.out
        summaries = summarise(runs, joint=self.comparison.joint)
        load = f"Load average {os.getloadavg()[0]:.1f} on {cores()} cores"
        processes = f"{self.jobs} runs at a time" if self.jobs > 1 else "one run at a time"
        circumstances = f"{load}; {processes}, {threads_of(runs)} each."
        seeds = self.comparison.seeds
        missing = unfinished(self.planned, runs)
        text = markdown(runs, summaries, self.command, seeds, circumstances, missing)
        write_whole(out / "results.md", text)
        write_whole(out / "results.csv", csv_table(runs))
        if last:
            from recall_lightning.compare.page import write_page  # slow to import
            from recall_lightning.compare.pareto import write_pareto

            first = runs[0]
            write_pareto(out / "pareto.png", summaries, first.monitor, first.higher_is_better)
            try:
                write_page(self.comparison, self.planned, runs, summaries)
            except (OSError, ValueError) as error:
                print(f"{_PROGRAM}: no report.html was written: {error}", file=sys.stderr)


def _run(
    comparison: Comparison, runs: Sequence[PlannedRun], jobs: int, command: str
) -> dict[str, Failure]:
    """Do what is not done yet, and report."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    done = [run for run in runs if run.done]
    todo = [run for run in runs if not run.done]
    if done:
        console.print(f"{len(done)} of {len(runs)} runs are done already", highlight=False)
    _say_what_is_outdated(comparison, todo, console)
    progress = Progress(comparison, jobs, console)
    progress.results += [load_run(run.folder) for run in done]
    reporter = _Reporter(comparison, runs, progress, jobs, command)
    try:
        with _terminated_like_interrupted(), progress:
            failures = run_all(todo, jobs, reporter)
    except KeyboardInterrupt as error:
        ended = len(progress.results)
        print(
            f"{_PROGRAM}: interrupted with {ended} of {len(runs)} runs done; the same command goes "
            "on from there",
            file=sys.stderr,
        )
        raise SystemExit(130) from error
    reporter.write(last=True)
    _show(comparison, progress, console)
    return failures


def _say_what_is_outdated(
    comparison: Comparison, todo: Sequence[PlannedRun], console: Console
) -> None:
    """Say which results are of another state, and take away the tables that hold them."""
    outdated = [run.outdated for run in todo if run.outdated]
    if not outdated:
        return
    changed = dict.fromkeys(name for names in outdated for name in names)
    console.print(
        f"runs that are done anew, as something has changed since: {len(outdated)} "
        f"({', '.join(changed)})",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for name in _TABLES:
        (comparison.out / name).unlink(missing_ok=True)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Stop the runs on SIGTERM, too."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(comparison: Comparison, progress: Progress, console: Console) -> None:
    """Print the scores, for eyes."""
    runs = progress.results
    if not runs:
        return
    rows = [setting.label for setting in comparison.settings]
    planned = len(comparison.seeds)
    direction = "higher" if runs[0].higher_is_better else "lower"
    of_seeds = "mean ± 95 % interval" if planned > 1 else f"seed {runs[0].seed}"
    caption = f"{runs[0].monitor}, {direction} is better; {of_seeds}; {threads_of(runs)} a run"
    table = Table(caption=caption)
    summaries = summarise(runs, joint=comparison.joint)
    has_gap = any("gap_closed" in row.values for row in summaries)
    heads = ["method", "average", "forgetting", "plasticity", *["gap closed, %"] * has_gap]
    for head in (*heads, "time a run"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for row in sorted(summaries, key=lambda row: rows.index(row.label)):
        scores = [cell(row.value(n), planned) for n in ("average", "forgetting", "plasticity")]
        gap = [cell(row.value("gap_closed"), planned, 1)] * has_gap
        table.add_row(row.label, *scores, *gap, duration(row.value("seconds").mean))
    console.print(table)
    written = [name for name in _TABLES if (comparison.out / name).is_file()]
    console.print(f"{comparison.out}: {', '.join(written)}", markup=False)


if __name__ == "__main__":
    main(sys.argv[1:])
