"""Texts in Markdown that are shown as they are: no links, no HTML, no tables of their own."""

import html
import re

from jaxcls.system.file_names import printable

_MARKS = re.compile(r"([\\`*_\[\]()#.!|~:@])")


def plain(text: str) -> str:
    """The text with every sign that Markdown, HTML or a table may take for its own escaped.

    Also addresses, which many programs would turn into links.
    """
    return _MARKS.sub(r"\\\1", html.escape(printable(text), quote=False))


def code(text: str) -> str:
    """The text as code inside a line or a cell of a table."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    # Markdown takes one space off both ends, unless there are only spaces.
    ends = (text[:1], text[-1:])
    space = " " if "`" in ends or (ends == (" ", " ") and text.strip(" ")) or not text else ""
    return fence + space + text.replace("|", r"\|") + space + fence
