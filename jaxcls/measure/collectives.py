"""Counts the messages between devices in the text of a compiled program."""

import collections
import re

from jaxcls.measure.program_text import shape_bytes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-done)?\(")


def collectives(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Counts the collectives of a compiled program by kind, and the bytes of their results.

    A collective in a loop counts once. An asynchronous one counts where it ends.
    """
    counts, sizes = collections.Counter[str](), collections.Counter[str]()
    for result, kind in _COLLECTIVE.findall(text):
        counts[kind] += 1
        sizes[kind] += shape_bytes(result)
    return dict(counts), dict(sizes)
