"""Text as reStructuredText has to write it."""

import re


def escaped(text: str) -> str:
    """Return text whose signs stand for themselves."""
    return re.sub(r"([\\*`|_<>])", r"\\\1", text)


def heading(text: str, line: str) -> list[str]:
    """Return a heading's lines.

    Args:
        text: What it says.
        line: The sign that it is underlined with.
    """
    return [text, line * max(4, len(text)), ""]
