import bz2
import gzip
import lzma

import pyarrow
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.row_files.opening import opened

TEXT = "Pérou, 東京\n" * 40


def read(folder, name, content, **options):
    (folder / name).write_bytes(content)
    with opened(str(folder / name), **options) as text:
        return text.read()


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".BZ2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda text: pyarrow.compress(text, codec="zstd", asbytes=True)),
        ("", bytes),
    ],
)
def test_files_are_decompressed_as_their_names_say(ending, compress, tmp_path):
    assert read(tmp_path, f"a.jsonl{ending}", compress(TEXT.encode())) == TEXT


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gbk"])
def test_an_encoding_that_is_named_is_taken_and_its_mark_is_no_text(code, tmp_path):
    text = TEXT.replace("é", "e")
    named = "utf-8" if code == "utf-8-sig" else code
    assert read(tmp_path, "a.csv", text.encode(code), encoding=named) == text


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_that_are_not_named_are_refused_by_name(code, tmp_path):
    with pytest.raises(MisconfigurationException, match=f"encoding='{code}'"):
        read(tmp_path, "a.csv", "country,capital\nPeru,Lima\n".encode(code))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", gzip.compress(b"a,b\n", mtime=0), "compressed with gzip"),
        ("a.csv", bz2.compress(b"a,b\n"), "compressed with bzip2"),
        ("a.csv", lzma.compress(b"a,b\n"), "compressed with xz"),
        ("a.csv", b"PK\x03\x04 and so on", "workbook of Excel"),
        ("a.csv.gz", b"a,b\n", "cannot be read .*Not a gzipped file"),
        ("a.csv.gz", gzip.compress(TEXT.encode(), mtime=0)[:-12], "cannot be read"),
        ("a.csv.xz", lzma.compress(TEXT.encode())[:-12], "cannot be read"),
        ("a.csv.bz2", b"a,b\n", "cannot be read"),
        ("a.csv.zst", b"a,b\n", "cannot be read"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    ],
)
def test_what_is_no_such_file_is_said(name, content, said, tmp_path):
    with pytest.raises(MisconfigurationException, match=said):
        read(tmp_path, name, content)


def test_an_unknown_encoding_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"encoding='klingon' .* is unknown"):
        read(tmp_path, "a.csv", b"a", encoding="klingon")
