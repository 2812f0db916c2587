"""JSON that may come from damaged or hostile files."""

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100


def parse_json(text: str | bytes, *, object_pairs_hook: Callable[..., Any] | None = None) -> Any:
    """Parses JSON as `json.loads`.

    Raises:
      ValueError: it is not JSON, or its lists and objects are nested more than `MAX_DEPTH` times.
        Python reports the latter as a RecursionError, here or later, which nobody expects.
    """
    try:
        values = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        values = None
        too_deep = True
    else:
        too_deep = _is_deeper(values, MAX_DEPTH)
    if too_deep:
        raise ValueError(f"nested more than {MAX_DEPTH} times")
    return values


def _is_deeper(values: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` times."""
    level = [values]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return False
    return True
