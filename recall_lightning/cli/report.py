"""The command ``recall-lightning report``: what runs learned, lost and cost, on one page."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from recall_lightning.cli.arguments import RaisingParser, refuse

_PROGRAM = "recall-lightning report"


def report_parser() -> ArgumentParser:
    """Build the command's parser.

    Example:
        >>> report_parser().parse_args(["runs/mine/version_0"]).out
        'report.html'
    """
    parser = RaisingParser(
        prog=_PROGRAM,
        description="Write what runs learned, what they forgot and what that cost as one HTML "
        "file that needs nothing beside it: sentences, the task matrix, figures, settings.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="A run's folder, with its task_matrix.json; several are also put side by side.",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="report.html",
        help="The file to write, in place of an earlier report. Default: report.html",
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run the command; whatever is wrong is one line on stderr and exit code 2.

    Args:
        args: The command line after ``report``.
    """
    try:
        given = report_parser().parse_args(args)
        out = Path(given.out)
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a file, as {out / 'report.html'}")
        if out.is_file() and not _is_page(out):
            raise ValueError(f"--out {out} is there and is no HTML page: name another file")
        from recall_lightning.report.page import write_report  # slow to import

        write_report([Path(run) for run in given.runs], out)
    except (ValueError, OSError) as error:
        refuse(_PROGRAM, error)
    print(out)


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15).lower() == b"<!doctype html>"
