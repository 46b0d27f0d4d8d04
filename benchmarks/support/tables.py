"""Tables in Markdown, as every benchmark prints them."""

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Write a table.

    Args:
        heads: One a column.
        rows: Cells as text, as many as there are heads.
        names: How many columns from the left hold names, to be aligned left; numbers go right.

    Raises:
        ValueError: For a row with more or fewer cells than there are heads.

    Example:
        >>> print(table(["way", "seconds"], [["copy", "0.1"], ["merge", "0.2"]]))
        | way | seconds |
        | --- | ---: |
        | copy | 0.1 |
        | merge | 0.2 |
    """
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"the row {list(row)} has not one cell for each of {list(heads)}")
    rule = ["---"] * names + ["---:"] * (len(heads) - names)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *rows])
