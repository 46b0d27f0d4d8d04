import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.row_errors import RowError
from recall_lightning.data.row_files.json_rows import read_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
ROWS = st.lists(
    st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT)), min_size=1, max_size=5
)
GOOD = {"a": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


def read(folder, text):
    file = folder / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_json(str(file)))


def good(folder, text):
    return [isinstance(row, dict) for _, row in read(folder, text)]


@pytest.mark.parametrize(
    "written",
    [
        lambda rows: "\n".join(map(json.dumps, rows)),
        lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n",
        lambda rows: " ".join(map(json.dumps, rows)),
        json.dumps,
        lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
        lambda rows: "\ufeff" + json.dumps(rows),
    ],
)
@given(rows=ROWS)
def test_rows_are_read_as_they_were_written(written, rows, folder):
    assert [row for _, row in read(folder, written(rows))] == rows


def test_objects_may_span_lines(folder):
    text = "\n".join(json.dumps(row, indent=2) for row in [GOOD, {}, {"a": ["x"]}])
    assert [row for _, row in read(folder, text)] == [GOOD, {}, {"a": ["x"]}]


def test_rows_are_numbered_by_the_line_on_which_they_end(folder):
    assert [n for n, _ in read(folder, '\n{"a": 1}\n\n{"a": 2} {"a": 3}\n')] == [2, 4, 4]
    assert [n for n, _ in read(folder, '\n[\n {"a":\n 1},\n\n {"a": 2}\n]')] == [4, 6]


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "5",
        "null",
        '["x"]',
        '{"a": 1} and more',
        '{"a": 1},',
        '{"a": 1, "a": 2}',
        '{"a": ' + "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        b'{"a": "P\xe9rou"}',
        '{"a": "\x00"}',
    ],
)
def test_a_bad_line_spoils_nothing_but_itself(bad, folder):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    for lines in ([b'{"a": 1}', bad, b'{"a": 2}'], [bad, b'{"a": 2}']):
        expected = [line is not bad for line in lines]
        assert good(folder, b"\n".join(lines)) == expected


def test_bytes_that_are_no_utf_8_are_said_to_be(folder):
    for text in ('{"a": "Pérou"}\n{"a": 1}', '[{"a": "Pérou"},\n {"a": 1}]'):
        (_, first), (_, second) = read(folder, text.encode("latin-1"))
        assert "encoding='latin-1'" in str(first)
        assert second == GOOD


def test_line_separators_of_unicode_end_no_line(folder):
    rows = [{"a": "x\u2028y\u2029z\u0085w"}, GOOD]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read(folder, text) == [*enumerate(rows, 1)]


def test_files_that_were_joined_keep_marks_that_are_no_text(folder):
    mark = "\ufeff".encode()
    assert read(folder, mark + b'{"a": 1}\n' + mark + b'{"a": 1}\n') == [(1, GOOD), (2, GOOD)]


def test_entries_of_an_array_that_are_no_objects_are_bad_rows(folder):
    assert good(folder, '[{"a": 1}, 3, "x", [1], {"a": 2}]') == [True, False, False, False, True]


def test_a_nested_name_that_stands_twice_is_kept_out_of_texts(folder):
    ((_, row),) = read(folder, '{"a": {"b": 1, "b": 2}}')
    assert isinstance(row["a"], RowError)


@pytest.mark.parametrize("text", ["", " \n\n", "[]", "[\n]"])
def test_nothing_is_no_rows(text, folder):
    assert read(folder, text) == []


@pytest.mark.parametrize(
    "text", ['[\n{"a": 1},\n{"a": 2}\n', '[\n{"a": 1}\n{"a": 2}]', '{\n"a": 1']
)
def test_a_broken_array_is_refused_with_the_line(text, folder):
    with pytest.raises(MisconfigurationException, match=r"broken JSON on line [2-4]"):
        read(folder, text)
