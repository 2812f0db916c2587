"""Tables in CSV whose texts no spreadsheet takes for formulas.

Spreadsheets run a cell that begins with =, +, - or @, as the name of a photo or class may do
(https://owasp.org/www-community/attacks/CSV_Injection); and in some languages a cell also begins
after a semicolon, a tab or a bar. There, such a text gets an apostrophe before it, and a text with
an apostrophe a second one.
"""

import csv
import re
from collections.abc import Iterable, Iterator

_START = r"((?:^|[;,|\t\r\n]) *)"  # of a cell
_FORMULA = re.compile(rf"{_START}(?=[=+\-@'＝＋－＠])")
_APOSTROPHE = re.compile(rf"{_START}'")
_QUOTED = re.compile(r'["|;,\t\r\n]|^ | $')


def csv_line(cells: Iterable[str | int | float]) -> str:
    """A row with its line break: texts escaped, and floats with six decimals."""
    return ",".join(map(_cell, cells)) + "\n"


def read_csv(file: Iterable[str]) -> Iterator[list[str]]:
    """Yields the rows that `csv_line` wrote, from lines or from a file opened with newline="".

    Numbers come as texts.
    """
    for row in csv.reader(file):
        yield [_APOSTROPHE.sub(r"\1", cell) for cell in row]


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, int):
        return str(value)
    text = _FORMULA.sub(r"\1'", value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
