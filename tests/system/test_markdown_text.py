"""Names in Markdown are shown as they are; a renderer reads them back."""

import html
import re

import pytest
from hostile_names import HOSTILE_NAMES
from markdown_it import MarkdownIt

from jaxcls.system.file_names import printable
from jaxcls.system.markdown_text import code, plain

RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def cells(markdown: str) -> list[str]:
    """The cells of a table's second row, rendered."""
    table = RENDERER.render(f"| a | b |\n|---|---|\n| name | {markdown} |\n")
    return re.findall("<td>(.*?)</td>", table, re.DOTALL)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    rendered = RENDERER.render(f"Its classes: {plain(name)}.")
    found = re.fullmatch("<p>Its classes: ([^<>]*)\\.</p>\n", rendered)
    assert found
    assert html.unescape(found[1]) == printable(name)
    assert html.unescape(cells(plain(name))[1]) == printable(name).strip()


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "``", "`", "a`", " "])
def test_code_is_shown_as_it_is(name: str) -> None:
    (_, shown) = cells(code(name))
    assert html.unescape(shown) == f"<code>{printable(name)}</code>"
