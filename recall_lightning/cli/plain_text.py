"""Docstrings as a terminal shows them: without the marks of reStructuredText."""

import re

_ROLE = re.compile(r":[a-z]+(?::[a-z]+)*:`([^`]*)`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")


def plain(text: str) -> str:
    """Return text without roles, links, directives and quotation marks of reStructuredText.

    Example:
        >>> plain("A :class:`~torch.nn.Module`, ``eps=1``: see `this page <https://a.b>`_::")
        'A Module, eps=1: see this page:'
        >>> plain(":class:`a class <torch.nn.Module>` of **two**, and a pattern ``*.mlp.*``")
        'a class of two, and a pattern *.mlp.*'
    """
    text = _ROLE.sub(lambda found: _title(found[1]), text)
    text = _LINK.sub(r"\1", text)
    text = re.sub(r"``(.+?)``", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"(?<!\w)`([^`\n]+)`_{0,2}", r"\1", text)
    text = re.sub(r"\*\*(\S(?:[^*\n]*\S)?)\*\*", r"\1", text)
    text = re.sub(r"^(\s*)\.\. (\w+)::", lambda m: f"{m[1]}{m[2].capitalize()}:", text, flags=re.M)
    return re.sub(r"::(?=\s|$)", ":", text)


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, in one line, without its full stop.

    Example:
        >>> first_sentence("How many, e.g. 3. More of it follows.")
        'How many, e.g. 3'
    """
    words = " ".join(text.split())
    found = re.match(r"(.+?(?<!e\.g)(?<!i\.e)(?<!\.\.))\.(?= [A-Z(]|$)", words)
    return found[1] if found else words.rstrip(".")


def _title(role: str) -> str:
    """Return what a role shows: its title, or the end of a path that a tilde shortens."""
    titled = re.fullmatch(r"(.+?)\s*<.*>", role, re.DOTALL)
    if titled:
        return titled[1]
    path = re.sub(r"\s+", "", role) if role.startswith("~") else role
    return path.rpartition(".")[2] if path.startswith("~") else path
