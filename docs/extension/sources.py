"""The package's files, as syntax trees."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "recall_lightning"


@dataclass(frozen=True)
class Source:
    """A file of the package.

    Attributes:
        path: It, from the repository's folder on.
        tree: What it says.
    """

    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder of the package that it lies in; "" for a file beside the folders."""
        *folders, _ = self.path.parts[1:]
        return folders[0] if folders else ""

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring."""
        paragraph = (ast.get_docstring(self.tree) or "").partition("\n\n")[0]
        return " ".join(paragraph.split())


def sources() -> Iterator[Source]:
    """Yield all files of the package, in the order of their paths."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield Source(path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8")))
