"""Measure RECALL and its rivals on real models, and write ``benchmarks/results/real_models.md``.

    python -m benchmarks.real [--study NAME] [--methods A,B] [--untuned] [--jobs 2] [-- ARGUMENTS]

A study is a recipe of ``benchmarks/real/recipes``. Started again it skips the runs that are done,
and the page shows all studies of which there are some in ``--out``. What follows ``--`` goes to
every run, as in ``-- --trainer.accelerator gpu``.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.real.page import MADE_BY, page, reported
from benchmarks.real.protocol import SMALLEST, methods, studies
from benchmarks.real.runs import Study, chosen_methods
from benchmarks.support.machine import hardware
from benchmarks.support.pages import RESULTS
from recall_lightning.weights.atomic import write_whole

PAGE = "real_models.md"


def main() -> None:
    """Run what is asked for, and write the page after each study."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    given = _parser().parse_args(words[:split])
    try:
        chosen = chosen_methods(given.methods, given.quick, methods())
    except ValueError as error:
        sys.exit(f"--methods: {error}")
    named = given.study or ([SMALLEST] if given.quick else studies())
    file = given.out / PAGE if given.quick or given.methods else RESULTS / PAGE
    command = shlex.join(["python", "-m", "benchmarks.real", *words])
    for name in [] if given.page_only else named:
        arguments, tuned = tuple(words[split + 1 :]), not given.untuned
        study = Study(name, given.out, given.jobs, chosen, given.quick, arguments, tuned)
        made = {"command": command, "machine": _machine()}
        write_whole(study.out / name / MADE_BY, json.dumps(made, indent=1) + "\n")
        study.report(study.tune())
        _write(file, given, chosen)
    _write(file, given, chosen)


def _machine() -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{hardware()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--study", action="append", choices=studies(), help="one of them; may be given again")
    add("--methods", help="some, such as ewc,lwf; fine-tuning and RECALL are always run")
    add("--quick", action="store_true", help="a few batches of few methods, one seed")
    add("--untuned", action="store_true", help="every method with its defaults, without trials")
    add("--jobs", type=int, default=1, help="runs at the same time (1)")
    add("--out", type=Path, default=Path("runs/real"), help="folder of runs (runs/real)")
    add("--page-only", action="store_true", help="write the page of the runs that are there")
    return parser


def _write(file: Path, given: argparse.Namespace, chosen: tuple[str, ...]) -> None:
    found = {}
    for name in studies():
        study = Study(name, given.out, given.jobs, chosen, given.quick)
        runs = reported(study)
        if runs:
            found[study] = runs
    if not found:
        sys.exit(f"--out {given.out} holds no runs")
    write_whole(file, page(found))
    print(f"written: {file}", flush=True)


if __name__ == "__main__":
    main()
