"""Rows of the tables of measurements, as the pages of rules and methods show them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from docs.extension.sources import ROOT

STREAMS = ROOT / "benchmarks" / "RESULTS.md"
MODELS = ROOT / "benchmarks" / "results" / "real_models.md"
READS_OLD_DATA = " †"
_ARROWS = "↑ higher scores are better, ↓ lower ones."


@dataclass(frozen=True)
class Table:
    """A table of a page of results.

    Attributes:
        section: The name of the section that it stands in.
        heading: The title below that, if there is one.
        direction: ``"higher"`` or ``"lower"``: which scores are better in that section.
        header: The names of its columns.
        rows: Its rows, each a cell a column; the first is what the row is of.
    """

    section: str
    heading: str
    direction: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def row(self, label: str) -> dict[str, str] | None:
        """Return a row's cells by column; None where there is no such row."""
        for row in self.rows:
            if row[0].removesuffix(READS_OLD_DATA) == label:
                return dict(zip(self.header, row, strict=True))
        return None


def tables(text: str) -> Iterator[Table]:
    """Yield the tables of a page of Markdown."""
    section = heading = direction = ""
    lines = iter([*text.splitlines(), ""])
    for line in lines:
        if line.startswith("## "):
            section, heading, direction = line[3:].partition(":")[0], "", ""
        elif line.startswith("### "):
            heading = line[4:]
        elif found := re.search(r"\b(higher|lower) is better", line):
            direction = found[1]
        elif line.startswith("|"):
            header = _cells(line)
            next(lines)  # the rule below it
            rows = list(iter(lambda: next(lines), ""))
            yield Table(section, heading, direction, header, [_cells(row) for row in rows])


def of_method(method: str) -> list[str]:
    """Return what was measured of a method, as lines of Markdown; none where nothing was."""
    return [*_on_streams(method), *_on_models(method)]


def of_rule(rule: str) -> list[str]:
    """Return the tables in which a rule is compared with others, as lines of Markdown."""
    found = list(tables(STREAMS.read_text(encoding="utf-8")))
    directions = {table.section: table.direction for table in found if table.direction}
    lines: list[str] = []
    for table in found:
        if not table.heading.startswith("Rule ") or not any(_is_of(rule, r) for r in table.rows):
            continue
        what, _, stream = table.heading.removesuffix(")").rpartition(" (")
        rows = [[_shown(cell, bold=_is_of(rule, row)) for cell in row] for row in table.rows]
        better = directions[stream]
        lines += [f"{what}, on {stream} ({better} averages are better):", ""]
        lines += [*_markdown(["rule", *table.header[1:]], rows), ""]
    return [*lines, _source(STREAMS.name, "benchmarks.evidence")] if lines else []


def _shown(cell: str, bold: bool) -> str:
    cell = cell.replace("*", r"\*")
    return f"**{cell}**" if bold and cell else cell


def _is_of(rule: str, row: Sequence[str]) -> bool:
    rules = row[0].partition(",")[0].split("*")
    return rule in rules or (rule == "product" and len(rules) > 1)


def _on_streams(method: str) -> list[str]:
    columns = ("average", "forgetting", "plasticity", "gap closed, %")
    rows = []
    for table in tables(STREAMS.read_text(encoding="utf-8")):
        own, plain, joint = (table.row(name) for name in (method, "finetune", "joint"))
        if own is None or plain is None or joint is None or not table.direction:
            continue
        if set(columns) <= set(table.header):
            ends = [_mean(plain["average"]), _mean(joint["average"])]
            rows.append([_name(table), *(own[name] for name in columns), *ends])
    header = ["stream", *columns, "fine-tuning's average", "joint training's"]
    said = f"{_ARROWS} {_source('RESULTS.md', 'benchmarks.evidence')}"
    return [*_markdown(header, rows), "", said, ""] if rows else []


def _on_models(method: str) -> list[str]:
    columns = ("gain, %", "forgetting", "average")
    rows = []
    for table in tables(MODELS.read_text(encoding="utf-8")):
        own, plain = table.row(method), table.row("finetune")
        if own is None or plain is None or not set(columns) <= set(table.header):
            continue
        ends = [_mean(plain["forgetting"]), _mean(plain["average"])]
        rows.append([_name(table), *(own[name] for name in columns), *ends])
    header = ["model and data", *columns, "fine-tuning's forgetting", "its average"]
    said = f"{_ARROWS} {_source('results/real_models.md', 'benchmarks.real')}"
    return [*_markdown(header, rows), "", said, ""] if rows else []


def _mean(cell: str) -> str:
    return cell.partition(" ±")[0]


def _name(table: Table) -> str:
    return f"{table.section}\N{NO-BREAK SPACE}{'↑' if table.direction == 'higher' else '↓'}"


def _source(page: str, program: str) -> str:
    return (
        f"Mean ± 95 % interval over seeds, read from `benchmarks/{page}` when this page was built, "
        f"which `python -m {program}` writes."
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)] if rows else []


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
