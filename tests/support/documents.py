"""What stands in the README and on the site's pages: blocks of code, commands, links."""

import re
import shlex
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GENERATED = {"_build", "examples"}

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}|:{3,})(?P<language>[^\n`]*)\n"
    r"(?P<text>.*?)^(?P=indent)(?P=ticks)$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block: where it stands, what language it names, what it holds."""

    page: str
    line: int
    language: str
    text: str


def pages():
    """Return the README and every page of the site that is written by hand."""
    site = (ROOT / "docs").rglob("*.md")
    written = [page for page in site if page.relative_to(ROOT / "docs").parts[0] not in GENERATED]
    return [ROOT / "README.md", *sorted(written)]


def blocks(text, page=""):
    """Return the fenced blocks of a text, those within a directive of colons too.

    >>> [found] = blocks("A line.\\n\\n```bash\\nls\\n```\\n")
    >>> found.line, found.language, found.text
    (3, 'bash', 'ls\\n')
    """
    found = []
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        language, inside = fence["language"].strip(), fence["text"]
        if fence["ticks"].startswith(":"):
            inner = blocks(inside, page)
            found += [block._replace(line=block.line + line) for block in inner]
        else:
            dedented = re.sub(rf"^{fence['indent']}", "", inside, flags=re.MULTILINE)
            found.append(Block(page, line, language, dedented))
    return found


BLOCKS = [
    block
    for page in pages()
    for block in blocks(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
]


def by_page(*languages):
    """Return the blocks in some languages by the page that they stand on."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return {page: list(found) for page, found in groupby(chosen, lambda block: block.page)}


def commands(block):
    """Yield the words of each command line in a block of bash, without what stands before it.

    >>> list(commands(Block("", 1, "bash", "A=1 ls \\\\\\n -l  # all\\n")))
    [['ls', '-l']]
    """
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words
