"""Puts the recipes, which lie beside the package in the repository, into what is installed."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies ``recipes`` into the package, from where ``recall-lightning recipes`` gives them."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("recipes", str(Path(self.build_lib, "recall_lightning", "recipes")))


setup(cmdclass={"build_py": BuildWithRecipes})
