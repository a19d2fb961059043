"""Rows of words and numbers as a plain text table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from itertools import islice


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to their widest cell; a column of numbers is right-aligned, any other left-aligned.

    Args:
        header: names of the columns.
        rows: a cell for each column; floats are shown with three decimals, integers with thousands separated.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) and bool(rows) for i in range(len(header))]
    widths = [max(len(text) for text in column) for column in zip(header, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(row) for row in cells)])


def in_words(names: Collection[str], *, most: int = 5) -> str:
    """'a, b, c and 7 more'.

    Args:
        names: one or more.
        most: how many are written.
    """
    more = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {more} more" if more > 0 else "")


def as_html(text: str, *, most: int = 60) -> str:
    """A text or a table for a notebook, which shows it as it is, in one width.

    Args:
        text: of one line or more.
        most: lines that are shown; of a longer text the middle is left out.
    """
    lines = text.split("\n")
    if len(lines) > most:
        half = most // 2
        text = "\n".join([*lines[:half], f"... {len(lines) - 2 * half} more ...", *lines[-half:]])
    return f'<pre style="line-height: 1.25">{escape(text)}</pre>'


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
