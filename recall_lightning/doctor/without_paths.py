"""Errors as a stranger may read them: without what lies where on a machine."""

import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FRAMES = 4  # of a traceback, the innermost
_ABSOLUTE = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[\\/](?=\S)(?:[^\s\\/'\"<>|:*?(),;]+[\\/])*")


def without_paths(text: str) -> str:
    r"""Return a text with the last part alone of every absolute path.

    Example:
        >>> without_paths("no file '/home/me/secret/a.txt', and 3/4 is a number")
        "no file '…/a.txt', and 3/4 is a number"
    """
    for folder in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix)):
        if len(folder.parts) > 1:  # one with spaces in its name is found by no pattern
            text = text.replace(f"{folder}{os.sep}", "/")
    return _ABSOLUTE.sub("…/", text)


def told(error: BaseException) -> list[str]:
    """Return an error in lines: what it says, and where it was raised.

    Example:
        >>> try:
        ...     int("x")
        ... except ValueError as error:
        ...     told(error)[0]
        "ValueError: invalid literal for int() with base 10: 'x'"
    """
    said = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"in {each.name}, {_place(each.filename)}:{each.lineno}" for each in frames]
    return [without_paths(said), *places]


def _place(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return path.relative_to(_PACKAGE.parent).as_posix()
    _, installed, inside = path.as_posix().rpartition("site-packages/")
    return inside if installed else path.name
