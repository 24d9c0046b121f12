"""What commands print: a table on a terminal, tab-separated lines into a pipe, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

Cell: TypeAlias = str | int | float | None


class Output(Protocol):
    """Takes the rows of one answer."""

    def row(self, cells: Sequence[Cell], more: Mapping[str, object] | None = None) -> None:
        """Cells in the order of the columns; `more` is for readers of JSON."""

    def end(self) -> None:
        """There are no more."""


class JsonLines:
    """An object for each row."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def row(self, cells: Sequence[Cell], more: Mapping[str, object] | None = None) -> None:
        """At once."""
        print_json({**dict(zip(self._columns, cells, strict=True)), **(more or {})})

    def end(self) -> None:
        """Each was printed when it came."""


class TabbedLines:
    """The cells alone, as scripts have always got them."""

    def row(self, cells: Sequence[Cell], more: Mapping[str, object] | None = None) -> None:
        """At once."""
        print("\t".join(map(text, cells)), flush=True)

    def end(self) -> None:
        """Each was printed when it came."""


class Drawn:
    """A table, when all rows are there."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._table = empty_table(columns)

    def row(self, cells: Sequence[Cell], more: Mapping[str, object] | None = None) -> None:
        """Kept until the end."""
        add_row(self._table, cells)

    def end(self) -> None:
        """Print it."""
        Console().print(self._table)


def output(columns: Sequence[str], as_json: bool) -> Output:
    """What fits where it goes."""
    if as_json:
        return JsonLines(columns)
    return Drawn(columns) if sys.stdout.isatty() else TabbedLines()


def empty_table(columns: Sequence[str]) -> Table:
    """With a head."""
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, cells: Sequence[Cell]) -> None:
    """Nothing in a name is taken for markup."""
    table.add_row(*(escape(text(cell)) for cell in cells))


def text(cell: Cell) -> str:
    """Shares with four digits; what is not known as a dash."""
    if cell is None or cell == "":
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def print_json(value: Mapping[str, object]) -> None:
    """One line."""
    print(json.dumps(value), flush=True)


def complain(message: str) -> None:
    """One line on standard error, whatever a file is called."""
    print(f"error: {message}", file=sys.stderr, flush=True)


def progress() -> Progress:
    """A bar on standard error, and nothing where that is no terminal.

    What is printed meanwhile goes above it, unless it goes elsewhere.
    """
    return Progress(
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not sys.stderr.isatty(),
    )
