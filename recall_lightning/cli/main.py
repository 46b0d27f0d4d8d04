"""The command ``recall-lightning``: the first word decides what is imported and run."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

_COMMANDS = {
    "merge": "recall_lightning.cli.merge",
    "export": "recall_lightning.export.command",
    "compare": "recall_lightning.compare.command",
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        args: The command line without the program's name; by default ``sys.argv``'s.
    """
    given = sys.argv[1:] if args is None else list(args)
    if given[:1] and given[0] in _COMMANDS:
        command: Callable[[Sequence[str]], None] = import_module(_COMMANDS[given[0]]).main
        return command(given[1:])
    from recall_lightning.cli.fit import main as fit

    return fit(args)


if __name__ == "__main__":
    main()
