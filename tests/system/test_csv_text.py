"""Texts in CSV come back, and none of them is a formula, whichever sign separates the cells."""

import csv
import io

import pytest
from hostile_names import HOSTILE_NAMES
from hypothesis import example, given
from hypothesis import strategies as st

from jaxcls.system.csv_text import csv_line, read_csv


def read(text: str) -> list[list[str]]:
    return list(read_csv(io.StringIO(text, newline="")))


@given(st.lists(st.text(alphabet="=+-@'a, ;|\t\n\r\"") | st.text(), min_size=1))
@example(list(HOSTILE_NAMES))
def test_texts_come_back(texts: list[str]) -> None:
    texts = [text.replace("\0", "") for text in texts]
    if texts == [""]:
        return  # as an empty line, which csv passes over
    lines = csv_line(texts) + csv_line(["next", *texts])
    assert read(lines) == [texts, ["next", *texts]]


@pytest.mark.parametrize("separator", ",;\t|")
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_cell_is_a_formula(name: str, separator: str) -> None:
    text = csv_line([name, "cat", 0.5, name])
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        for cell in row:
            assert not cell.strip().startswith(("=", "+", "-", "@")), cell


def test_numbers_stay_numbers_and_plain_texts_plain() -> None:
    assert csv_line(["cat", "dög", 3, -2, 0.25, -1e-9, "O'Brien", "a b"]) == (
        "cat,dög,3,-2,0.250000,-0.000000,O'Brien,a b\n"
    )
    assert csv_line(["=1", 'say "x"']) == '\'=1,"say ""x"""\n'
