import datetime
import json
from decimal import Decimal

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.cells import text_of
from recall_lightning.data.row_errors import RowError
from recall_lightning.data.rows import read_rows


def write(folder, table, name="a.parquet"):
    pyarrow.parquet.write_table(table, folder / name)
    return str(folder / name)


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".JSONL", ".Json"])
def test_json_goes_by_many_names(ending, tmp_path):
    file = tmp_path / f"a{ending}"
    file.write_text('{"a": 1}\n')
    assert list(read_rows(str(file))) == [(1, {"a": 1})]


def test_parquet_is_read_with_its_types(tmp_path):
    row = {
        "when": datetime.datetime(2020, 1, 2),
        "much": Decimal("1.50"),
        "list": ["a", "b"],
        "entry": {"x": 1},
        "raw": b"Paris",
        "none": None,
    }
    table = pyarrow.Table.from_pylist([row])
    table = table.append_column(
        "map", pyarrow.array([[("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    )
    assert list(read_rows(write(tmp_path, table))) == [(1, row | {"map": {"k": "v"}})]


def test_a_cell_of_parquet_that_python_cannot_hold_is_a_bad_row(tmp_path):
    far = pyarrow.array([0, 2**50, 1], pyarrow.timestamp("s"))
    found = list(read_rows(write(tmp_path, pyarrow.table({"when": far}))))
    assert [isinstance(row, RowError) for _, row in found] == [False, True, False]


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1 and so on PAR1"])
def test_what_is_no_parquet_is_said(content, tmp_path):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(MisconfigurationException, match="cannot be read as Parquet"):
        list(read_rows(str(tmp_path / "a.parquet")))


def test_columns_of_one_name_are_refused(tmp_path):
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    with pytest.raises(MisconfigurationException, match="names the column 'a' more than once"):
        list(read_rows(write(tmp_path, table)))


def test_a_data_set_that_was_saved_without_splits_is_that_of_its_own_split_alone(tmp_path):
    made = datasets.Dataset.from_list([{"a": 1}], split="train")
    made.save_to_disk(tmp_path / "named")
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "unnamed")
    assert list(read_rows("train", str(tmp_path / "named"))) == [(1, {"a": 1})]
    for folder, split in (("named", "validation"), ("unnamed", "train")):
        with pytest.raises(MisconfigurationException, match="save a DatasetDict"):
            list(read_rows(split, str(tmp_path / folder)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Paris", "Paris"),
        ("nan", "nan"),
        (b"P\xc3\xa9rou", "Pérou"),
        (3, "3"),
        (0, "0"),
        (2.5, "2.5"),
        (False, "False"),
        (Decimal("1E+2"), "100"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
    ],
)
def test_a_cell_is_written_as_text(value, text):
    assert text_of(value, "c") == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "c is empty"),
        ("  ", "c is empty"),
        (b"", "c is empty"),
        ([], "c is empty"),
        (float("nan"), "c is empty"),
        (Decimal("nan"), "c is empty"),
        (float("inf"), "c holds inf, and no text"),
        (Decimal("-Infinity"), "no text"),
        (json.loads('"\\ud83d"'), r"half a character, the lone surrogate \\ud83d"),
        (b"\x89PNG", "c is no UTF-8 .*0x89"),
        ("a\0b", "NUL"),
        ([1], "name its entry"),
        ({"en": "a"}, "name its entry"),
        (len, "no text"),
    ],
)
def test_what_is_no_text_says_why(value, said):
    with pytest.raises(RowError, match=said):
        text_of(value, "c")
