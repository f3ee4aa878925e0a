"""Rows of the table of bars: what was measured, against what, and whether the bar is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTHS = (4, 62, 30, 14, 6, 18, 5)
_VERDICTS = {True: "yes", False: "NO", None: ""}


@dataclass(frozen=True)
class Row:
    """One measured figure beside its reference.

    Attributes:
        line: the property that it belongs to, the same for all rows of one.
        what: what was measured, on how much.
        ours, reference: the figures with their units; the reference empty where there is none.
        ratio: ours to the reference, in the direction that the bar means; empty where there is none.
        bar: what was asked for.
        holds: whether the bar is held; None where nothing was asked for.
    """

    line: str
    what: str
    ours: str
    reference: str
    ratio: str
    bar: str
    holds: bool | None


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows under a header, long cells wrapped."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, ratio in (
        ("line", 1),
        ("what", 12),
        ("ours", 7),
        ("reference", 4),
        ("ratio", 1),
        ("bar", 4),
        ("holds", 1),
    ):
        table.add_column(name, ratio=ratio, overflow="fold")
    for row in rows:
        table.add_row(*astuple(row)[:-1], _VERDICTS[row.holds])
    Console(width=150, markup=False, highlight=False).print(table)
