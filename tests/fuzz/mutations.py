"""Ways to damage a file: bytes, JSON, and containers whose checksums are then made right again.

Every function takes a random generator first, and its result depends on nothing else.
"""

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c

type Damage = Callable[[random.Random, bytes], bytes]

_LONGEST = 1 << 20  # bytes of a damaged file
_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (*_NUMBERS, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    "\0",
    "\x1b]0;title\x07\x1b[2J",
    "\ud800",
    "\u202e\u2028",
    "../../etc/passwd",
    "/dev/zero",
    "{0.__class__}%s%n",
    "=cmd|' /C calc'!A0",
    "<script>",
    "a" * 5000,
    "9" * 5000,
    "1e400",
    "NaN",
    "(a+)+$",
)
_RAW = ("NaN", "-Infinity", "1e999", "-0", "9" * 400, "9" * 5000, "1e-999", "true", "null")
_WORD = re.compile(rb"[-+\w.]+")


# --- Bytes ---------------------------------------------------------------------------------------


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damages one to four places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(rng, changed)
    return bytes(changed[:_LONGEST])


def damage_ends(rng: random.Random, data: bytes) -> bytes:
    """Damages the beginning or the end of a file, whose middle has nothing."""
    size = min(1000, len(data) // 2)
    if rng.random() < 0.7:
        return damage_bytes(rng, data[:size]) + data[size:]
    return data[:-size] + damage_bytes(rng, data[-size:])


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _replace(rng: random.Random, data: bytearray) -> None:
    start, stop = _range(rng, data, 16)
    data[start:stop] = rng.randbytes(stop - start)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(rng: random.Random, data: bytearray) -> None:
    start, stop = _range(rng, data, rng.choice((4, 64, len(data) + 1)))
    del data[start:stop]


def _insert(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data) + 1)
    filling = rng.choice((rng.randbytes(4), bytes(rng.randrange(300)), b"\xff" * 8, b"[" * 200))
    data[place:place] = filling


def _repeat(rng: random.Random, data: bytearray) -> None:
    start, stop = _range(rng, data, 64)
    data[start:start] = bytes(data[start:stop]) * rng.choice((1, 2, 50))


def _swap(rng: random.Random, data: bytearray) -> None:
    first, second = _range(rng, data, 32), _range(rng, data, 32)
    if first[1] <= second[0]:
        one, other = data[slice(*first)], data[slice(*second)]
        data[slice(*second)], data[slice(*first)] = one, other


def _set_number(rng: random.Random, data: bytearray) -> None:
    kind = rng.choice("BHIQ")
    most = 256 ** struct.calcsize(kind) - 1
    packed = struct.pack(rng.choice("<>") + kind, rng.choice(_LARGE) & most)
    place = rng.randrange(len(data) + 1)
    data[place : place + len(packed)] = packed


def _set_word(rng: random.Random, data: bytearray) -> None:
    """Replaces a word or number of a text."""
    start = rng.randrange(len(data) + 1)
    if found := _WORD.search(data, start, start + 200):
        word = rng.choice((str(rng.choice(_LARGE)), f"-{rng.choice(_LARGE)}", *_TEXTS, *_RAW))
        data[found.start() : found.end()] = word.encode("utf-8", "surrogatepass")


def _range(rng: random.Random, data: bytearray, longest: int) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randrange(1, longest + 1))


_CHANGES = (
    _flip,
    _flip,
    _replace,
    _cut,
    _remove,
    _insert,
    _repeat,
    _swap,
    _set_number,
    _set_number,
    _set_word,
)


# --- JSON ----------------------------------------------------------------------------------------


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """Exchanges values and types, removes, repeats and renames fields, and nests them deeply."""
    if rng.random() < 0.2:
        return damage_bytes(rng, data)
    return dump_json(rng, json.loads(data)).encode("utf-8", "surrogatepass")


def dump_json(rng: random.Random, values: Any) -> str:
    """The text of JSON values after one to three changes; the values are changed, too."""
    raw: dict[str, str] = {}  # what stands for itself in the text, by its place-holder
    holder = {"": values}
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(holder))
        outer, key = rng.choice(places)
        change = rng.randrange(6)
        if change == 0 and outer is not holder:
            del outer[key]
        elif change == 1 and isinstance(outer, dict) and outer is not holder:
            outer[rng.choice((*_TEXTS, str(key) + "x", str(key)[:-1]))] = outer.pop(key)
        elif change == 2:
            other, name = rng.choice(places)
            outer[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
        elif change == 3:
            name = f"raw{len(raw)}"
            depth = rng.choice((50, 99, 101, 3000, 100_000))
            deep = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
            raw[f'"{name}"'] = rng.choice((*_RAW, deep))
            outer[key] = name
        else:
            outer[key] = rng.choice((rng.choice(_LARGE), -1, 0.5, *_TEXTS, [], {}, None, True))
    text = json.dumps(holder[""])
    for name, instead in raw.items():
        text = text.replace(name, instead)
    return text


def _places(values: Any) -> Any:
    """Yields each list or table, and the key of each value in it."""
    for key in _keys(values):
        yield values, key
        yield from _places(values[key])


def _keys(values: Any) -> Sequence[Any]:
    if isinstance(values, dict):
        return list(values)
    return range(len(values)) if isinstance(values, list) else ()


# --- Containers ----------------------------------------------------------------------------------


def mostly(*damages: Damage) -> Damage:
    """Damages what is inside a container, and one time in four the container itself."""

    def damage(rng: random.Random, data: bytes) -> bytes:
        chosen = damage_bytes if rng.random() < 0.25 else rng.choice(damages)
        return chosen(rng, data)

    return damage


def damage_record(rng: random.Random, data: bytes) -> bytes:
    """Damages one record of a zip archive, whose checksum fits again; or its name or method."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    chosen, how = rng.randrange(len(records)), rng.randrange(10)
    with zipfile.ZipFile(written, "w") as archive:
        for number, (name, content) in enumerate(records):
            if number != chosen:
                archive.writestr(name, content)
            elif how == 0:
                archive.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED)
            elif how == 1:
                archive.writestr(rng.choice((f"../{name}", f"/{name}", name[:-1], "x")), content)
            elif how > 2:  # with 2 it is left out
                archive.writestr(name, damage_bytes(rng, content))
    return written.getvalue()


def damage_header(rng: random.Random, data: bytes) -> bytes:
    """Damages the JSON of a safetensors file, whose length fits again."""
    length = int.from_bytes(data[:8], "little")
    header = damage_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damage_metadata(rng: random.Random, data: bytes) -> bytes:
    """Damages the JSON in the metadata of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice(list(header["__metadata__"]))
    inner = header["__metadata__"][name].encode()
    header["__metadata__"][name] = damage_json(rng, inner).decode("utf-8", "replace")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def damage_checked(rng: random.Random, data: bytes) -> bytes:
    """Damages a file of TensorStore's OCDBT, whose length and CRC-32C at the end fit again."""
    body = damage_bytes(rng, data[12:-4])
    changed = data[:4] + (len(body) + 16).to_bytes(8, "little") + body
    return changed + google_crc32c.value(changed).to_bytes(4, "little")


def damage_chunk(rng: random.Random, data: bytes) -> bytes:
    """Damages one chunk of a PNG file, whose length and checksum fit again."""
    chunks, place = [], 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        chunks.append([data[place + 4 : place + 8], data[place + 8 : end - 4]])
        place = end
    chosen = rng.choice(chunks)
    how = rng.randrange(6)
    if how == 0:
        chunks.insert(rng.randrange(len(chunks)), list(rng.choice(chunks)))
    elif how == 1:
        chunks.remove(chosen)
    elif how == 2 and chosen[0] == b"IDAT":
        chosen[1] = zlib.compress(damage_bytes(rng, zlib.decompress(chosen[1])))
    else:
        chosen[1] = damage_bytes(rng, chosen[1])
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
