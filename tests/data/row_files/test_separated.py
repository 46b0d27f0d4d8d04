import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.row_errors import RowError
from recall_lightning.data.row_files.separated import read_separated

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("separated")


def read(folder, name, text, **options):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row for _, row in read_separated(str(folder / name), **options)]


def said(rows):
    return [str(row) if isinstance(row, RowError) else row for row in rows]


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=6))
def test_csv_is_read_as_it_was_written(rows, folder):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *rows])
    found = read(folder, "a.csv", out.getvalue())
    assert found == [dict(zip("ab", row, strict=True)) for row in rows]


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=6), end=st.sampled_from(["\n", "\r\n", "\r"])
)
def test_tsv_has_no_quoting(rows, end, folder):
    clean = [[cell.translate({9: " ", 10: " "}) for cell in row] for row in rows]
    text = end.join("\t".join(row) for row in [["a", "b"], *clean]) + end
    assert read(folder, "a.tsv", text) == [dict(zip("ab", row, strict=True)) for row in clean]


def test_a_quote_that_begins_a_cell_of_tsv_takes_no_further_line(folder):
    found = read(folder, "a.tsv", 'a\tb\n"x\t1\ny"\t2\n')
    assert found == [{"a": '"x', "b": "1"}, {"a": 'y"', "b": "2"}]


def test_cells_may_be_longer_than_the_library_s_limit_which_stays_what_it_was(folder):
    before = csv.field_size_limit()
    (row, short) = read(folder, "a.csv", f"a,b\n{'x' * 200_000},1\ny,2\n")
    assert (len(row["a"]), short) == (200_000, {"a": "y", "b": "2"})
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("broken", ['1,"x', '1,"he said "no" ok"', '"x"y,1'])
def test_quotes_that_do_not_fit_spoil_their_own_line_alone(broken, folder):
    rows = [*csv.reader(["2,y"]), *csv.reader(['3,"z, w"']), ["4", "v"]]
    first, *others = read(folder, "a.csv", f'a,b\n{broken}\n2,y\n3,"z, w"\n4,v\n')
    assert isinstance(first, RowError)
    assert others == [dict(zip("ab", row, strict=True)) for row in rows]


def test_rows_with_more_or_fewer_cells_than_the_header_are_bad(folder):
    found = read(folder, "a.csv", "a,b\n1\n1,2\n1,2,3\n1,2,\n")
    good = {"a": "1", "b": "2"}
    said_of = "it has {} cells, and the header 2".format
    assert said(found) == [said_of(1), good, said_of(3), good]


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder):
    assert read(folder, "a.csv", "a,b\n1,2\n".encode("utf-8-sig")) == [{"a": "1", "b": "2"}]


def test_a_line_in_another_code_is_a_bad_row_that_says_so(folder):
    latin = "a,b\nPérou,1\nChad,2\n".encode("latin-1")
    (first, second) = read(folder, "a.csv", latin)
    assert isinstance(first, RowError)
    assert "encoding='latin-1'" in str(first)
    assert second == {"a": "Chad", "b": "2"}
    assert read(folder, "a.csv", latin, encoding="latin-1")[0] == {"a": "Pérou", "b": "1"}


def test_a_nul_is_no_text(folder):
    assert "NUL" in said(read(folder, "a.csv", "a\nx\0y\n"))[0]


def test_an_unnamed_column_is_left_out(folder):
    assert read(folder, "a.csv", ",a\n0,x\n") == [{"a": "x"}]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "a,b,a\n1,2,3\n", "names the column 'a' more than once"),
        ("a.csv", "a;b\n1;2\n", "say delimiter=';'"),
        ("a.csv", "a\tb\n1\t2\n", r"say delimiter='\\t'"),
        ("a.tsv", "a,b\n1,2\n", "say delimiter=','"),
        ("a.csv", "é,b\n1,2\n".encode("latin-1"), "header.*encoding='latin-1'"),
        ("a.csv", 'a,"b\n1,2\n', "header.*quotes do not fit"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(name, text, complaint, folder):
    with pytest.raises(MisconfigurationException, match=complaint):
        read(folder, name, text)


def test_a_delimiter_may_be_named(folder):
    assert read(folder, "a.csv", 'a;b\n"1;2";3\n', delimiter=";") == [{"a": "1;2", "b": "3"}]
    assert read(folder, "a.csv", "a;b\n1\n", delimiter=",") == [{"a;b": "1"}]
    with pytest.raises(MisconfigurationException, match=r"delimiter='::' .* one character"):
        read(folder, "a.csv", "a\n", delimiter="::")
