"""Measure every claim of this project about quality, and write ``benchmarks/RESULTS.md``.

    python -m benchmarks.evidence [--quick] [--jobs 2] [--out runs/evidence]

The page is written anew after each stage. Started again it skips the runs that are done.
``--quick`` runs a few batches of each setting, to see that everything works, and writes its page
into ``--out``.
"""

import argparse
from pathlib import Path

from benchmarks.evidence.page import Results, write_page
from benchmarks.evidence.protocol import ABLATIONS
from benchmarks.evidence.stages import Evidence, ablate, choose, many_tasks, report, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder of runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--quick", action="store_true", help="a few batches of everything")
    arguments = parser.parse_args()
    evidence = Evidence(arguments.out, arguments.jobs, arguments.quick)
    page = Path("benchmarks/RESULTS.md")
    if arguments.quick:
        page = arguments.out / "RESULTS.md"
    results = Results(f"python -m benchmarks.evidence{' --quick' if arguments.quick else ''}")
    for stream in evidence.streams:
        results.chosen[stream.name] = choose(tune(evidence, stream), stream)
        results.reports[stream] = report(evidence, stream, results.chosen[stream.name])
        write_page(page, results)
    results.many = many_tasks(evidence, results.chosen)
    write_page(page, results)
    streams = [stream.name for stream in evidence.streams]
    for ablations in [each for each in ABLATIONS if each.stream in streams]:
        results.ablations |= ablate(evidence, ablations)
        write_page(page, results)
    print(f"written: {page}")


if __name__ == "__main__":
    main()
