"""The README as a package index shows it."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
readme_for_index = runpy.run_path(str(ROOT / "setup.py"))["readme_for_index"]


@pytest.mark.parametrize(
    "repository", [None, "https://example.org/me/it", "https://example.org/me/it/"]
)
def test_no_link_leads_beside_it(repository):
    shown = readme_for_index(README, repository)
    assert re.findall(r"\]\((?!https://)", shown) == []
    assert "[arXiv 2510.20479](https://arxiv.org/abs/2510.20479)" in shown


def test_with_a_repository_links_and_pictures_are_there():
    shown = readme_for_index("[a](docs/a.md) ![b](b.png)", "https://example.org/it")
    assert shown == (
        "[a](https://example.org/it/blob/HEAD/docs/a.md) "
        "![b](https://example.org/it/raw/HEAD/b.png)"
    )


def test_without_one_the_words_are_left():
    assert readme_for_index("[a](docs/a.md) ![b](b.png) [c](#c)", None) == "a  [c](#c)"
