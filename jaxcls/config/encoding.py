"""Configs as dicts that are ready for JSON, and back; `decode` checks every config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxcls.config.decoding import (
    ConfigError,
    decode_fields,
    encode_fields,
    flatten,
    kind_of,
)
from jaxcls.config.rules import check_rules
from jaxcls.config.schema import Config, operational_fields

SCHEMA_VERSION = 2


def encode(config: Config) -> dict[str, Any]:
    """Encodes a config as dicts that are ready for JSON, with the schema's version."""
    return {"schema_version": SCHEMA_VERSION, **encode_fields(config)}


def decode(values: Mapping[str, Any]) -> Config:
    """Decodes and checks the dicts that `encode` makes.

    Fields that are absent take their defaults, so that older runs stay readable.

    Raises:
      ConfigError: an unknown field (with the nearest valid name), a wrong type, a value out of
        range, or fields that contradict each other.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: expected a group of fields, got {kind_of(values)}")
    values = dict(values)
    version = values.pop("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version < 1:
        raise ConfigError(
            f"schema_version: expected a whole number from 1 up, got {kind_of(version)}"
        )
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"schema_version: this config has version {version}, but this jaxcls reads at most "
            f"version {SCHEMA_VERSION}; use a newer jaxcls"
        )
    if version == 1:
        _migrate_from_1(values)
    config = decode_fields(Config, values, prefix="")
    check_rules(config)
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Switches:
    """The group `augment` of version 1, which is now a list."""

    crop: bool = True
    flip: bool = True


def _migrate_from_1(values: dict[str, Any]) -> None:
    switches = decode_fields(_Switches, values.get("augment", {}), prefix="augment.")
    crop = {"op": "RandomCrop" if switches.crop else "CenterCrop"}
    values["augment"] = [{"op": "RandomFlip"}] * switches.flip + [crop]


def changed_fields(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ and affect the result: dotted name -> (old value, new value)."""
    operational = operational_fields()
    before, after = (flatten(encode_fields(config)) for config in (old, new))
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if name not in operational and before.get(name) != after.get(name)
    }
