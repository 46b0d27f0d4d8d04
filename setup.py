"""What ``pyproject.toml`` cannot say: the recipes go into the package, the README to an index."""

import re
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
_LINK = re.compile(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?!#|\w+:)(?P<path>[^)]+)\)")


class BuildWithRecipes(build_py):
    """Copies ``recipes`` into the package, from where ``recall-lightning recipes`` gives them."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("recipes", str(Path(self.build_lib, "recall_lightning", "recipes")))


def readme_for_index(text: str, repository: str | None) -> str:
    """Return the README as a package index shows it, beside which no file lies.

    Args:
        text: It, in Markdown.
        repository: Where the repository is read, ``[project.urls] Repository``; None where that is
            not said.

    Returns:
        The text with links to there; without any, with the words of links and no pictures.
    """

    def elsewhere(link: re.Match[str]) -> str:
        if repository is None:
            return "" if link["picture"] else link["words"]
        kind = "raw" if link["picture"] else "blob"
        address = f"{repository.rstrip('/')}/{kind}/HEAD/{link['path']}"
        return f"{link['picture']}[{link['words']}]({address})"

    return _LINK.sub(elsewhere, text)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        cmdclass={"build_py": BuildWithRecipes},
        long_description=readme_for_index(readme, project.get("urls", {}).get("Repository")),
        long_description_content_type="text/markdown",
    )
