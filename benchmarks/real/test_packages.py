import hashlib

import pytest

from benchmarks.real import packages
from benchmarks.real.packages import PackageFile, file_of, prepared


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with a file, that a table names by its digest."""
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "table.csv"
    file.write_text("a,b\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "FILES", {"table": PackageFile("own/table.csv", digest)})
    monkeypatch.setattr(packages, "PREPARED", tmp_path / "prepared")
    file_of.cache_clear()
    return file


def test_a_file_is_found_in_its_package_without_importing_that(installed):
    assert file_of("table") == installed


@pytest.mark.parametrize("content", [None, "a,c\n"])
def test_one_that_is_missing_or_another_is_told_with_what_installs_it(installed, content):
    installed.unlink() if content is None else installed.write_text(content)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps --require-hashes"):
        file_of("table")


def test_what_is_prepared_once_is_not_made_again(installed):
    first, again = (prepared("rows.jsonl", lambda text=text: text) for text in ("one", "two"))
    assert first == again
    assert first.read_text() == "one"
