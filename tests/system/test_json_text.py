import json

import pytest

from jaxcls.system.json_text import MAX_DEPTH, parse_json


@pytest.mark.parametrize("value", [1, "a", None, [], {}, {"a": [1, {"b": [True, 2.5]}]}])
def test_it_parses_as_json(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}"), ('[0,{"a":', "}]")])
def test_deep_nesting_is_an_ordinary_error(before: str, after: str) -> None:
    each = len([sign for sign in before if sign in "[{"])
    fits = MAX_DEPTH // each
    parse_json(before * fits + "1" + after * fits)
    for depth in (fits + 1, 500, 100_000):
        with pytest.raises(ValueError, match="nested more than 100 times"):
            parse_json(before * depth + "1" + after * depth)


def test_a_hook_sees_every_pair() -> None:
    assert parse_json('{"a": 1, "a": 2}', object_pairs_hook=list) == [("a", 1), ("a", 2)]
