"""Tables that a terminal of 80 columns shows whole: headers wrap between words, figures are neither cut nor broken."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LEAST_WIDTH = 80  # a narrower terminal wraps lines by itself, which is better than figures cut in two
HEADER_WIDTHS = (18, 14, 10, 0)  # to wrap headers at, the first that leaves room for all columns; 0: at every word
Cells = Sequence[str | Text]


def terminal() -> Console:
    """A console at least as wide as the narrowest that tables are made for."""
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    return console


def grouped(rows: Sequence[Cells]) -> tuple[list[Cells], set[int]]:
    """Rows "group: item" below a heading for each group of several, and the lengths of the table at a group's end.

    A row whose name is the group's is the heading itself. A name without ": ", or alone in its group, stays as it is.
    """
    groups = [str(row[0]).partition(": ")[0] for row in rows]
    sizes = Counter(groups)
    result: list[Cells] = []
    ends = set()
    for number, (group, row) in enumerate(zip(groups, rows, strict=True)):
        before, after = (groups[i] if 0 <= i < len(rows) else None for i in (number - 1, number + 1))
        item = str(row[0]).partition(": ")[2]
        if sizes[group] > 1 and item:
            result += [] if group == before else [(group, *[""] * (len(row) - 1))]
            row = (f"  {item}", *row[1:])
        result.append(row)
        if sizes[group] > 1 and group != after:
            ends.add(len(result))
    return result, ends


def _widest(text: str | Text, separator: str | None = "\n") -> int:
    return max((cell_len(part) for part in str(text).split(separator)), default=0)


def _widths(header: Cells, rows: Sequence[Cells], room: int, first: int | None) -> tuple[list[int], int]:
    """Width of every column, and the spaces between two."""
    columns = list(zip(header, *rows, strict=True))
    for gap, at_most in product((2, 1), HEADER_WIDTHS):
        widths = [
            max(*map(_widest, cells), _widest(title, None), min(_widest(title), at_most)) for title, *cells in columns
        ]
        if first is not None:
            widths[0] = first
        left = room - sum(widths) - gap * (len(widths) - 1) - 2
        if left >= 0:
            return widths, gap
    return [widths[0] + (left if first is not None else 0), *widths[1:]], gap


def make_table(
    header: Cells, rows: Sequence[Cells], width: int, *, title: str = "", ends: set[int] | None = None,
    first: int | None = None
) -> Table:  # fmt: skip
    """A table whose first column is text and whose others are numbers.

    Args:
        header: of the columns.
        rows: cells, which may have several lines.
        width: of the terminal.
        title: above the table.
        ends: lengths of the table at which a section ends.
        first: width of the first column, or less where there is no room: its cells are wrapped between words; None: as
            wide as the widest.
    """
    widths, gap = _widths(header, rows, width, first)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD,
                  padding=(0, gap - 1, 0, 0), pad_edge=False)  # fmt: skip
    for number, (text, size) in enumerate(zip(header, widths, strict=True)):
        table.add_column(text, justify="right" if number else "left", width=size)
    for length, row in enumerate(rows, start=1):
        table.add_row(*row, end_section=length in (ends or ()))
    return table
