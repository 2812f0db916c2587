"""Texts in the attributes of an HDF5 group, read from the file's bytes.

libhdf5 takes as much memory as the length that stands before a text says, 4 GB at worst, before it
looks whether there is such a text. These few structures are those that Keras's files have (version
0 of the superblock, 1 of the object headers); attributes that are stored otherwise are left out.

The format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, sections III.E,
IV.A.1.a and IV.A.2.b to IV.A.2.m.
"""

import math
import struct
from collections.abc import Iterator

MAX_STEPS = 1_000_000  # headers' messages, texts and heaps' entries; a Keras file needs thousands

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
_FIXED, _VARIABLE = 3, 9  # classes of types


class DamagedError(Exception):
    """The bytes are not what the format says."""


class TextReader:
    """Reads the attributes that are a text or a list of texts.

    Args:
      data: the whole file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._heaps: dict[int, dict[int, bytes]] = {}
        self._steps = 0

    def read(self, address: int) -> dict[str, str | list[str]]:
        """The texts of one object.

        Args:
          address: of the object's header.

        Raises:
          DamagedError: a length or place is impossible, or there is too much of everything.
        """
        data = self._data
        if data[8:9] not in (b"\0", b"\1") or data[13:15] != b"\x08\x08":
            return {}
        if data[address : address + 1] != b"\1":
            return {}
        texts = {}
        try:
            for kind, message in self._messages(address):
                if kind == _ATTRIBUTE and (found := self._attribute(message)) is not None:
                    texts[found[0]] = found[1]
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise DamagedError(str(error)) from None
        return texts

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Type and content of each message of an object header of version 1."""
        left, _, size = struct.unpack_from("<xxHII", self._data, address)
        blocks = [(address + 16, size)]
        while blocks and left:
            self._step()
            place, size = blocks.pop(0)
            end = place + size
            if end > len(self._data):
                raise DamagedError("an object's header reaches out of the file")
            while place + 8 <= end and left:
                self._step()
                kind, length = struct.unpack_from("<HH", self._data, place)
                if place + 8 + length > end:
                    raise DamagedError("a message reaches out of its block")
                message = self._data[place + 8 : place + 8 + length]
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", message))
                yield kind, message
                place += 8 + length
                left -= 1

    def _attribute(self, message: bytes) -> tuple[str, str | list[str]] | None:
        """Name and value, or None if it is not of texts."""
        version, flags, name_size, type_size, space_size = struct.unpack_from("<BBHHH", message)
        if version not in (1, 2, 3) or (version > 1 and flags):
            return None
        place = 9 if version == 3 else 8
        parts = []
        for size in (name_size, type_size, space_size):
            parts.append(message[place : place + size])
            place += (size + 7) // 8 * 8 if version == 1 else size
        name, kind, space = parts
        shape = _shape(space)
        (item_size,) = struct.unpack_from("<I", kind, 4)
        count = math.prod(shape) if shape is not None else 0
        if count * max(1, item_size) > max(0, len(message) - place):
            raise DamagedError("an attribute reaches out of its message")
        values = message[place : place + count * item_size]
        if count and kind[0] & 15 == _FIXED and item_size:
            cuts = range(0, len(values), item_size)
            texts = [values[cut : cut + item_size].rstrip(b"\0") for cut in cuts]
        elif count and kind[0] & 15 == _VARIABLE and kind[1] & 15 == 1 and item_size == 16:
            texts = [self._text(*entry) for entry in struct.iter_unpack("<IQI", values)]
        elif not count:
            texts = []  # Keras writes an empty list of names as one of numbers
        else:
            return None
        decoded = [text.decode() for text in texts]
        return name.rstrip(b"\0").decode(), decoded[0] if shape == () else decoded

    def _text(self, length: int, address: int, index: int) -> bytes:
        """A text of variable length."""
        self._step()
        if length == 0:
            return b""
        if address not in self._heaps:
            self._heaps[address] = dict(self._heap(address))
        text = self._heaps[address].get(index)
        if text is None or len(text) < length:
            raise DamagedError("a text lies nowhere")
        return text[:length]

    def _heap(self, address: int) -> Iterator[tuple[int, bytes]]:
        """The entries of a "global heap collection"."""
        signature, size = struct.unpack_from("<4s4xQ", self._data, address)
        end = address + size
        if signature != b"GCOL" or end > len(self._data):
            raise DamagedError("texts lie nowhere")
        place = address + 16
        while place + 16 <= end:
            self._step()
            index, length = struct.unpack_from("<HxxxxxxQ", self._data, place)
            if index == 0:  # free space up to the end
                return
            if place + 16 + length > end:
                raise DamagedError("a text reaches out of its heap")
            yield index, self._data[place + 16 : place + 16 + length]
            place += 16 + (length + 7) // 8 * 8

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise DamagedError("there are too many attributes")


def _shape(space: bytes) -> tuple[int, ...] | None:
    """Of a dataspace; None if it holds nothing at all."""
    version, rank, _, kind = struct.unpack_from("<BBBB", space)
    if version not in (1, 2):
        raise DamagedError("an attribute of an unknown shape")
    if version == 2 and kind == 2:
        return None
    return struct.unpack_from(f"<{rank}Q", space, 8 if version == 1 else 4)
