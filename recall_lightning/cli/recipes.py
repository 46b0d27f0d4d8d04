"""The command ``recall-lightning recipes``: the recipes that come along, listed or copied."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from recall_lightning.cli.arguments import RaisingParser, refuse
from recall_lightning.cli.plain_text import first_sentence

_PROGRAM = "recall-lightning recipes"
_PACKAGE = Path(__file__).parents[1]
_WIDTH = 18


def recipes_folder() -> Path:
    """Return where the recipes lie: in the package, or of a checkout beside it.

    Example:
        >>> (recipes_folder() / "digits_rotated.yaml").is_file()
        True
    """
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def recipes_parser() -> ArgumentParser:
    """Build the command's parser.

    Example:
        >>> recipes_parser().parse_args(["--out", "recipes"]).out
        'recipes'
    """
    parser = RaisingParser(
        prog=_PROGRAM,
        description="List the recipes, or copy them all with the rows and the tiny model that some "
        "read. Those name their files from the folder that holds recipes/, so copy them to there.",
    )
    parser.add_argument("--out", metavar="FOLDER", help="The folder to make. It must not exist.")
    return parser


def main(args: Sequence[str]) -> None:
    """Run the command; whatever is wrong is one line on stderr and exit code 2.

    Args:
        args: The command line after ``recipes``.
    """
    try:
        out = recipes_parser().parse_args(args).out
        if out is None:
            _show()
            return
        if Path(out).exists():
            raise ValueError(f"--out {out} exists: name a folder that does not")
        left_out = shutil.ignore_patterns("*.py", "__pycache__")  # what made the rows and the model
        shutil.copytree(recipes_folder(), out, ignore=left_out)
    except (ValueError, OSError) as error:
        refuse(_PROGRAM, error)
    print(f"{out}: train one by recall-lightning fit -c {Path(out, 'digits_rotated.yaml')}")


def _show() -> None:
    """Print each recipe's name with the first sentence of its comment."""
    for file in sorted(recipes_folder().glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in takewhile(_is_comment, lines))
        print(f"{file.stem:<{_WIDTH}}  {first_sentence(comment)}")


def _is_comment(line: str) -> bool:
    return line.startswith("#")
