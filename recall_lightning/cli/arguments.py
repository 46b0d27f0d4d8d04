"""What commands with plain arguments share: a parser that raises, and how a mistake is told."""

import sys
from argparse import ArgumentParser
from typing import Any, NoReturn

from recall_lightning.cli.complaints import sentence


class RaisingParser(ArgumentParser):
    """A parser that raises a ValueError instead of printing its usage, and knows whole names only.

    Args:
        hint: What is added where an argument is unknown.
        **settings: Of :class:`argparse.ArgumentParser`.

    Example:
        >>> RaisingParser(prog="it").parse_args(["--much"])
        Traceback (most recent call last):
        ValueError: unrecognized arguments: --much
    """

    def __init__(self, hint: str = "", **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._hint = hint

    def error(self, message: str) -> NoReturn:
        """Raise the message as a ValueError."""
        said = sentence(message, self._option_string_actions)
        if self._hint and message.startswith("unrecognized"):
            said += f" ({self._hint})"
        raise ValueError(said)


def refuse(program: str, error: object) -> NoReturn:
    """Say in one line on stderr what is wrong, and exit with code 2.

    Args:
        program: The command's name.
        error: What is wrong.
    """
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{error.filename} cannot be read or written ({error.strerror}): name another place"
    print(f"{program}: error:", " ".join(said.split()), file=sys.stderr)
    raise SystemExit(2) from (error if isinstance(error, BaseException) else None)
