import io

from rich.console import Console

from benchmarks.real.demo import ability_table, answers_table
from benchmarks.real.general_ability import General


def test_answers_are_printed_as_they_are_beside_what_is_left():
    asked = {"question": "q", "before": "[b] yes", "after": "no [/red]"}
    found = {"RECALL": General([0.1, 0.25], [3.0, 3.1, 3.5], [asked])}
    text = io.StringIO()
    console = Console(file=text, width=100)
    for table in (ability_table(found), answers_table(found)):
        console.print(table)
    assert all(cell in text.getvalue() for cell in ("[b] yes", "no [/red]", "+0.500", "0.250"))
