"""A table as the report prints it: columns, some under a common heading, and rows of cells that know how they sort."""

from dataclasses import dataclass
from itertools import groupby

NO_VALUE = "–"

MANY = 1e6
"""From here on a number is said by its size."""


@dataclass(frozen=True)
class Column:
    """One column; those next to each other with the same `group` share a heading."""

    name: str
    group: str = ""
    is_text: bool = False
    """Text names the row: it is a header of it, left-aligned."""
    is_said_once: bool = False
    """Printed on the first of several rows that agree on it."""


@dataclass(frozen=True)
class Cell:
    """What is printed, and what a reader sorts by."""

    text: str
    value: float | None = None
    """Sorts the column; None: by the text in a column of text, last in a column of numbers."""
    small: str = ""
    """Below, in small print: an interval."""
    verdict: str = ""
    mark: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Row:
    """One row; `kind` and `ranker` are what it can be filtered by."""

    cells: tuple[Cell, ...]
    kind: str = ""
    ranker: str = ""
    is_repeat: bool = False
    """It agrees with the row before on the columns that are said once."""


@dataclass(frozen=True)
class PrintedTable:
    """A table with a title; `about` says in a sentence or two how to read it."""

    name: str
    """For links: a word of letters, digits and hyphens."""
    title: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def is_grouped(self) -> bool:
        """Whether the header has two rows."""
        return any(column.group for column in self.columns)

    @property
    def groups(self) -> list[tuple[str, list[tuple[int, Column]]]]:
        """Columns under each heading with their places; each column without a heading is alone."""
        keyed = groupby(enumerate(self.columns), key=lambda placed: placed[1].group or placed[0])
        return [(key if isinstance(key, str) else "", list(placed)) for key, placed in keyed]

    @property
    def kinds(self) -> list[str]:
        """Kinds of segments among the rows, beside `all`."""
        return [kind for kind in dict.fromkeys(row.kind for row in self.rows) if kind not in ("", "all")]

    @property
    def rankers(self) -> list[str]:
        """Rankers among the rows."""
        return [ranker for ranker in dict.fromkeys(row.ranker for row in self.rows) if ranker]


def number(value: float | None, digits: int) -> Cell:
    """0.1235, or a dash."""
    return Cell(NO_VALUE) if value is None else Cell(f"{value:.{digits}f}", value)


def compact(value: float) -> str:
    """0.5, 400, 12,000, 6e+10: what has too many digits is said by its size."""
    return f"{value:,g}" if value < MANY else f"{value:.2g}"


def percent(value: float | None, digits: int = 2) -> Cell:
    """12.35%, or a dash."""
    return Cell(NO_VALUE) if value is None else Cell(f"{value:.{digits}%}", value)


def count(value: int | None) -> Cell:
    """12,345, or a dash."""
    return Cell(NO_VALUE) if value is None else Cell(f"{value:,}", value)


def share(part: int, whole: int) -> Cell:
    """12.3%, or a dash where there is no whole."""
    return percent(part / whole if whole else None, 1)


def mark_repeats(columns: tuple[Column, ...], rows: list[Row]) -> tuple[Row, ...]:
    """The rows, each knowing whether it agrees with the one before on the columns that are said once."""
    places = [place for place, column in enumerate(columns) if column.is_said_once]
    said = [[row.cells[place] for place in places] for row in rows]
    return tuple(
        Row(row.cells, row.kind, row.ranker, is_repeat=n > 0 and bool(places) and said[n] == said[n - 1])
        for n, row in enumerate(rows)
    )
