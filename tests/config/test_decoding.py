import dataclasses
from typing import Annotated, Any, Literal

import pytest

from jaxcls.config.decoding import (
    ConfigError,
    Pattern,
    Range,
    decode_fields,
    flatten,
    kind_of,
    leaves,
    metadata,
    nearest,
)
from jaxcls.system.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, Range(1, 9)] = 1
    mode: Literal["a", "b"] | None = None
    code: Annotated[str | None, Pattern("[a-z]+[0-9]")] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    rate: Annotated[float, Range(0, below=1)] = 0.0
    inner: Inner = dataclasses.field(default_factory=Inner)
    limit: Annotated[float | None, Range(0), "note"] = None
    choice: Literal["auto"] | Annotated[int, Range(2)] = "auto"
    extras: dict[str, float | bool] = dataclasses.field(default_factory=dict)
    weights: str | tuple[Annotated[float, Range(0)], ...] | None = None


def decode(values: Any) -> Outer:
    return decode_fields(Outer, values, prefix="")


def error_of(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(values)
    return str(caught.value)


def test_groups_unions_and_names_with_values_are_built() -> None:
    values = {
        "inner": {"size": 9, "mode": "b"},
        "limit": 3,
        "choice": 2,
        "extras": {"x": 1, "y": False},
    }
    assert decode(values) == Outer(
        inner=Inner(size=9, mode="b"), limit=3.0, choice=2, extras={"x": 1.0, "y": False}
    )
    assert decode({}) == Outer()
    assert decode({"limit": None, "inner": {"mode": None}}) == Outer()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1}, "rate: must be at least 0 and below 1, got 1.0"),
        ({"inner": {"size": 10}}, "inner.size: must be between 1 and 9, got 10"),
        ({"inner": {"size": None}}, "inner.size: expected a whole number, got None (NoneType)"),
        ({"inner": {"mode": 3}}, "inner.mode: 3 is not one of a, b"),
        ({"inner": []}, "inner: expected a group of fields, got [] (list)"),
        ({"inner": {"sise": 3}}, "unknown field inner.sise; did you mean 'inner.size'?"),
        ({"limit": -1}, "limit: must be at least 0, got -1.0"),
        ({"limit": False}, "limit: expected a number, got False (bool)"),
        ({"limit": float("-inf")}, "limit: must be finite, got -inf"),
        ({"choice": 1}, "choice: 1 is not one of auto; or must be at least 2, got 1"),
        ({"weights": [1, -2]}, "weights.1: must be at least 0, got -2.0"),
        ({"extras": {"x": None}}, None),
        ({"extras": {"x": "1"}}, None),
        ({7: 1}, "unknown field 7"),
    ],
)
def test_an_error_names_the_dotted_field(values: Any, message: str | None) -> None:
    if message is None:
        message = error_of(values)
        assert message.startswith("extras.x: expected a number, got ")
        assert "; or expected True or False" in message
    else:
        assert error_of(values) == message


def test_config_errors_are_user_errors() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)


def test_nearest_names_one_close_name_or_none() -> None:
    assert nearest("learning_rat", ["learning_rate", "weight_decay"]) == (
        "; did you mean 'learning_rate'?"
    )
    assert nearest("zzz", ["learning_rate"]) == ""
    assert nearest("a", []) == ""


def test_ranges_read_as_words() -> None:
    assert str(Range(1)) == "at least 1"
    assert str(Range(0, 1)) == "between 0 and 1"


def test_leaves_are_the_dotted_fields_with_their_hints() -> None:
    hints = dict(leaves(Outer, prefix=""))
    assert list(hints) == [
        "rate",
        "inner.size",
        "inner.mode",
        "inner.code",
        "limit",
        "choice",
        "extras",
        "weights",
    ]
    assert metadata(hints["limit"]) == (Range(0), "note")
    assert metadata(hints["extras"]) == ()


def test_flatten_joins_names_with_dots() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}


def test_kind_of_shows_value_and_type() -> None:
    assert kind_of("x") == "'x' (str)"


def test_a_pattern_is_of_the_whole_text() -> None:
    assert decode({"inner": {"code": "ab1"}}).inner.code == "ab1"
    for code in ("ab1x", "xAB1", ""):
        message = error_of({"inner": {"code": code}})
        assert message == f"inner.code: must look like [a-z]+[0-9], got {code!r}"
    assert error_of({"inner": {"code": 3}}) == "inner.code: expected a text, got 3 (int)"
