"""Files stay small enough to be read, and to be cloned."""

import pytest

from tests.support.processes import ROOT, tracked_files

LARGEST_FILE = 1024 * 1024  # bytes; the tiny model in recipes is the largest, and is needed whole
LONGEST_MODULE = 700  # lines; what grows past it is two things


@pytest.mark.processes
def test_no_tracked_file_is_large():
    files = tracked_files()
    if files is None:
        pytest.skip("this is no checkout of git")
    sizes = {file.relative_to(ROOT): file.stat().st_size for file in files if file.is_file()}
    assert {file: size for file, size in sizes.items() if size > LARGEST_FILE} == {}


def test_no_module_is_long():
    modules = (ROOT / "recall_lightning").rglob("*.py")
    lines = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in modules}
    assert len(lines) > 100
    assert {file: number for file, number in lines.items() if number > LONGEST_MODULE} == {}
