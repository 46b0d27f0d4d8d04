"""What says which version this is, says the same."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from recall_lightning import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = {
    name.lower().replace("_", "-"): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE
    )
}


def claimed():
    tools = ("docs", "test")  # of those who work on it
    extras = [part for name, part in PROJECT["optional-dependencies"].items() if name not in tools]
    for text in [*PROJECT["dependencies"], *chain.from_iterable(extras)]:
        requirement = Requirement(text)
        (lowest,) = [each.version for each in requirement.specifier if each.operator == ">="]
        yield requirement.name.lower().replace("_", "-"), Version(lowest)


def test_the_citation_and_the_changelog_are_of_this_version():
    assert "version" in PROJECT["dynamic"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_oldest_versions_are_those_that_are_claimed():
    """An x.y that is claimed is there as its first release, which may be an x.y.1."""
    for name, lowest in claimed():
        if name != "bitsandbytes":  # which needs a GPU, and is in no lane
            assert Version(OLDEST[name]).release[:2] == (*lowest.release, 0)[:2], name
