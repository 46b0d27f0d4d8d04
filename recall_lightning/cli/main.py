"""The command ``recall-lightning``: the first word decides what is imported and run."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from recall_lightning.__about__ import __version__


@dataclass(frozen=True)
class _Command:
    """What a first word stands for.

    Attributes:
        module: Has its ``main``.
        summary: What it does, in a few words.
        takes_word: Whether ``main`` is given the word too.
        takes_classes: Whether its arguments name classes, which may be of the user's own.
    """

    module: str
    summary: str
    takes_word: bool = False
    takes_classes: bool = False


_COMMANDS = {
    "fit": _Command("recall_lightning.cli.fit", "train on a stream of tasks", True, True),
    "validate": _Command("recall_lightning.cli.fit", "validate a checkpoint on it", True, True),
    "compare": _Command(
        "recall_lightning.compare.command",
        "methods, settings and seeds against each other",
        takes_classes=True,
    ),
    "merge": _Command("recall_lightning.cli.merge", "merge models on disk, file to file"),
    "retune": _Command(
        "recall_lightning.cli.retune", "a checkpoint's last merge again, with another balance"
    ),
    "report": _Command(
        "recall_lightning.cli.report", "what runs learned, lost and cost, as one HTML file"
    ),
    "export": _Command(
        "recall_lightning.export.command",
        "a checkpoint of a language model as a folder of Hugging Face",
    ),
    "recipes": _Command("recall_lightning.cli.recipes", "the recipes that come along, to copy"),
    "doctor": _Command(
        "recall_lightning.doctor.command", "versions, devices and a self-test, for an issue"
    ),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand; Ctrl-C that it does not answer itself ends it with exit code 130.

    Args:
        args: The command line without the program's name; by default ``sys.argv``'s.
    """
    given = sys.argv[1:] if args is None else list(args)
    if not given or given[0] in ("-h", "--help", "--version") or not given[0].startswith("-"):
        word = _parser().parse_args(given[:1]).command
    else:
        word = "fit"  # whose parser takes a recipe before the word, too
    command = _COMMANDS[word]
    if command.takes_classes:
        _find_classes_here()
    try:
        run: Callable[[Sequence[str] | None], None] = import_module(command.module).main
        # None where nothing was given: Lightning warns of arguments on both sides
        return run(args if command.takes_word else given[1:])
    except KeyboardInterrupt:
        print(f"recall-lightning {word}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _parser() -> ArgumentParser:
    width = max(map(len, _COMMANDS))
    rows = [f"  {word.ljust(width)}  {command.summary}" for word, command in _COMMANDS.items()]
    parser = ArgumentParser(
        prog="recall-lightning",
        usage="recall-lightning [-h] {" + ",".join(_COMMANDS) + "} ...",
        description="Continual training for PyTorch Lightning.",
        epilog="\n".join(["commands, each with a --help of its own:", *rows]),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"recall-lightning {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="One of those below.")
    return parser


def _find_classes_here() -> None:
    """Look for modules in the current folder first, as ``python train.py`` does."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


if __name__ == "__main__":
    main()
