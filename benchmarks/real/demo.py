"""A language model learns German, then Dutch, with and without RECALL: ``make demo-llm``.

    python -m benchmarks.real.demo [--jobs 2] [--out runs/demo-llm] [-- ARGUMENTS]

``recall-lightning compare`` on ``benchmarks/real/demo.yaml``, and what the model answers before and
after. What follows ``--`` goes to every run.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.real.general_ability import General, measured_in
from benchmarks.support.comparisons import compared

RECIPE = Path("benchmarks/real/demo.yaml")
METHODS = {"finetune": "fine-tuning", "recall": "RECALL"}


def main() -> None:
    """Train twice, and print what became of the model."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.demo", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-llm"), help="folder of runs")
    given = parser.parse_args(words[:split])
    settings = {method: f"{method}:" for method in METHODS}
    compared(RECIPE, given.out, settings, [0], given.jobs, words[split + 1 :])
    found = {
        title: general
        for method, title in METHODS.items()
        if (general := measured_in(given.out / method / "seed_0")) is not None
    }
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(ability_table(found))
    console.print(answers_table(found))


def ability_table(found: dict[str, General]) -> Table:
    """Tabulate what is left at the end, a row a method."""
    caption = (
        "What is left of the model as it came, at the end: its loss on English news, and how far "
        "its predictions have moved on text that it wrote itself; both in nats a token, 0 is best"
    )
    table = Table(caption=caption)
    table.add_column("")
    for head in ("news, more than before", "KL to the model before"):
        table.add_column(head, justify="right")
    for title, general in found.items():
        lost = general.news[-1] - general.news[0]
        table.add_row(title, f"{lost:+.3f}", f"{general.kl[-1]:.3f}")
    return table


def answers_table(found: dict[str, General]) -> Table:
    """Tabulate the answers before and after, a column a method."""
    table = Table("question", "before", *(f"after {title}" for title in found), show_lines=True)
    for number, first in enumerate(next(iter(found.values())).answers):
        after = [general.answers[number]["after"] for general in found.values()]
        cells = (first["question"], first["before"], *after)
        table.add_row(*map(Text, cells))  # brackets in them are no markup
    return table


if __name__ == "__main__":
    main()
