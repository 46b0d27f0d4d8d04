from pathlib import Path

import pytest

from recall_lightning.doctor.without_paths import told, without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file '/home/me/secret/a.txt'", "no file '…/a.txt'"),
        (r"C:\Users\me\a.txt is gone", "…/a.txt is gone"),
        ("~/runs/a.ckpt and runs/a.ckpt", "…/a.ckpt and runs/a.ckpt"),
        ("a share of 3/4, 5 / 6 and and/or", "a share of 3/4, 5 / 6 and and/or"),
        (f"in {Path.home()}/my own runs/x", "in …/my own runs/x"),
        (f"in {Path.cwd()}/x", "in …/x"),
    ],
)
def test_of_a_path_its_end_is_left(text, shown):
    assert without_paths(text) == shown


def test_an_error_is_told_in_one_line_and_where_it_was_raised_below():
    try:
        Path("/no/such/file").read_text()
    except OSError as error:
        first, *places = told(error)
    assert first == "FileNotFoundError: [Errno 2] No such file or directory: '…/file'"
    assert places[0].startswith("in test_an_error_is_told_in_one_line")
    assert all(place.split(", ")[1][0] != "/" for place in places)
