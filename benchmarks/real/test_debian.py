import pytest

from benchmarks.real import packages
from benchmarks.real.packages import FILES, file_of


def test_a_file_of_debian_is_found_where_its_package_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "DEBIAN", tmp_path)
    wanted = FILES["fashion_test_labels"]
    file = tmp_path / wanted.path
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another one")
    with pytest.raises(FileNotFoundError, match=r"fashion-mnist/t10k.* is not the file.*make fash"):
        file_of.__wrapped__("fashion_test_labels")
