"""`jaxcls presets`: a table of the published weights that have a name in jaxcls."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from jaxcls.commands.options import parse
from jaxcls.config.decoding import nearest
from jaxcls.pretrained.hub import is_present
from jaxcls.pretrained.presets import Preset, find_preset, preset, preset_names
from jaxcls.system.errors import UserError
from jaxcls.system.output import put, say, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presets:
    """Prints a table of the presets: published weights by name; uses no network."""

    filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PART")] = ""
    """Part of the names to list, such as efficientnetv2 or imagenet21k."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls presets …`; returns the exit status."""
    options = parse(Presets, "jaxcls presets", arguments)
    part = options.filter.lower()
    chosen = [preset(name) for name in preset_names() if part in name]
    if not chosen and (alias := find_preset(part)):
        chosen = [alias]
    if not chosen:
        raise UserError(
            f"no preset has {options.filter!r} in its name{nearest(part, preset_names())}; "
            f"`jaxcls presets` lists all"
        )
    present = [is_present(each) for each in chosen]
    say(_describe(chosen, present))
    if options.json:
        rows = [_as_json(*pair) for pair in zip(chosen, present, strict=True)]
        put(json.dumps({"presets": rows}))
    return 0


def _describe(presets: Sequence[Preset], present: Sequence[bool]) -> str:
    rows = [("name", "network", "pixels", "MB", "top-1", "licence", "from", "here")]
    rows += [
        (
            each.name,
            each.info.model,
            str(each.info.image_size),
            f"{each.num_bytes / 1e6:.0f}",
            "" if each.top1 is None else f"{each.top1:.1%}",
            each.licence,
            each.repository or f"package {each.package}",
            "yes" if here else "",
        )
        for each, here in zip(presets, present, strict=True)
    ]
    return table(rows, right=(2, 3, 4))


def _as_json(preset: Preset, present: bool) -> dict[str, Any]:
    return {
        "name": preset.name,
        "model": preset.info.model,
        "image_size": preset.info.image_size,
        "num_classes": preset.num_classes,
        "bytes": preset.num_bytes,
        "top1": preset.top1,
        "top1_source": preset.top1_source,
        "licence": preset.licence,
        "url": preset.url,
        "file": preset.file,
        "sha256": preset.sha256,
        "present": present,
    }
