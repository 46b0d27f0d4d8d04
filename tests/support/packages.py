"""Packages that are installed for a test: their modules and metadata in a folder of the path."""

import shutil
import tomllib
from pathlib import Path

GENTLE = Path(__file__).parents[1] / "recall_gentle"


def install(target, name, entry_points, module=None, version="1.0"):
    """Write what an installer would of a package, so that its entry points are found.

    Args:
        target: A folder of the path.
        name: The package's.
        entry_points: By group the entry points, by name.
        module: A module's file to copy; None where there is none.
        version: The package's.
    """
    folder = target / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[recall_lightning.{group}]", *(f"{k} = {v}" for k, v in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    if module is not None:
        shutil.copy(module, target)


def install_gentle(target):
    """Install the example in ``tests/recall_gentle``, as its ``pyproject.toml`` says."""
    project = tomllib.loads((GENTLE / "pyproject.toml").read_text())["project"]
    groups = {
        group.removeprefix("recall_lightning."): entries
        for group, entries in project["entry-points"].items()
    }
    install(target, project["name"], groups, GENTLE / "recall_gentle.py", project["version"])
