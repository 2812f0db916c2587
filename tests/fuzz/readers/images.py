"""Readers of images, and good images."""

import io
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import mutations
import numpy as np
import PIL.Image
import tifffile
from mutations import Damage, damage_bytes, mostly

from readers.reader import Reader

cv2.setNumThreads(0)  # a child would wait for OpenCV's threads, which a fork does not copy


def _images(
    samples: Sequence[bytes], damage: Damage = damage_bytes, *, channels: Sequence[int] = (3, 1, 4)
) -> Reader:
    from jaxcls.data.decode import decode_image, image_header

    def read(folder: Path) -> None:
        data = (folder / "image").read_bytes()
        for number, longest in zip(channels, (None, 8, None), strict=False):
            image = decode_image(data, where="it", channels=number, longest=longest)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == number
            assert image.size
        image_header(data, channels=channels[0])

    return Reader(
        samples=[{"image": sample} for sample in samples], damage={"image": damage}, read=read
    )


def jpeg() -> Reader:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return _images(
        [
            *encoded("JPEG", "RGB", "L", "CMYK"),
            *encoded("JPEG", "RGB", progressive=True),
            *encoded("JPEG", "RGB", exif=exif.tobytes(), subsampling=0),
            *encoded("JPEG", "RGB", xmp=_XMP, restart_marker_rows=1),
            encoded("JPEG", "CMYK")[0].replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
        ]
    )


def png() -> Reader:
    deep = (_photo().astype(np.uint16) * 257)[:, :, ::-1]
    return _images(
        [
            *encoded("PNG", "RGB", "L", "1", "P", "RGBA", "LA", "I;16"),
            *encoded("PNG", "P", transparency=3),
            *encoded("PNG", "RGB", transparency=(1, 2, 3)),
            cv2.imencode(".png", deep)[1].tobytes(),
            *encoded("PNG", "RGB", exif=b"Exif\0\0" + _EXIF, pnginfo=_png_texts()),
        ],
        mostly(mutations.damage_chunk),
    )


def bmp() -> Reader:
    return _images([*encoded("BMP", "RGB", "L", "1", "P", "RGBA"), *_other_bmps()])


def webp() -> Reader:
    return _images(
        [
            *encoded("WEBP", "RGB", "RGBA"),
            *encoded("WEBP", "RGBA", lossless=True),
            *encoded("WEBP", "RGB", exif=b"Exif\0\0" + _EXIF, xmp=_XMP),
            _animated("WEBP"),
        ]
    )


def gif() -> Reader:
    return _images(
        [*encoded("GIF", "P", "L", "1"), *encoded("GIF", "P", transparency=3), _animated("GIF")]
    )


def tiff() -> Reader:
    return _images(
        [
            *encoded("TIFF", "RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"),
            *encoded("TIFF", "RGB", compression="tiff_lzw"),
            *encoded("TIFF", "RGB", compression="tiff_adobe_deflate"),
            *encoded("TIFF", "RGB", compression="jpeg"),
            *encoded("TIFF", "L", compression="packbits"),
            *encoded("TIFF", "1", compression="group4"),
        ]
    )


def multispectral_tiff() -> Reader:
    planes = np.moveaxis(_spectrum(), 2, 0)
    files = []
    kinds: tuple[dict[str, Any], ...] = (
        {"planarconfig": "contig"},
        {"planarconfig": "contig", "compression": "zlib"},
        {"planarconfig": "contig", "bigtiff": True, "rowsperstrip": 3, "byteorder": ">"},
        {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib", "predictor": True},
    )
    for options in kinds:
        image = planes if options["planarconfig"] == "separate" else _spectrum()
        file = io.BytesIO()
        tifffile.imwrite(file, image, photometric="minisblack", **options)
        files.append(file.getvalue())
    return _images(files, channels=(5,))


def npy() -> Reader:
    files = []
    for array in (_spectrum(), np.moveaxis(_spectrum(), 2, 0), np.asfortranarray(_spectrum())):
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version)
            files.append(file.getvalue())
    return _images(files, _damage_header, channels=(5,))


def _spectrum() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, (12, 10, 5), dtype=np.uint16)


def _damage_header(rng: random.Random, data: bytes) -> bytes:
    """Damages the header of a .npy file or all of it."""
    end = rng.choice((64, 128, len(data)))
    return damage_bytes(rng, data[:end]) + data[end:]


def avif() -> Reader:
    return _images([*encoded("AVIF", "RGB", "RGBA"), *encoded("AVIF", "RGB", exif=_EXIF)])


_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)
# A TIFF header and one directory with the orientation 6.
_EXIF = b"II*\0\x08\0\0\0" + struct.pack("<HHHLHHL", 1, 0x0112, 3, 1, 6, 0, 0)


def _photo(height: int = 12, width: int = 10) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.0)


def encoded(kind: str, *modes: str, **options: Any) -> list[bytes]:
    """The photo in each of Pillow's modes."""
    files = []
    for mode in modes:
        image = PIL.Image.fromarray(_photo())
        file = io.BytesIO()
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def _animated(kind: str) -> bytes:
    frames = [PIL.Image.fromarray(np.roll(_photo(), 3 * turn, 0)) for turn in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


def _png_texts() -> Any:
    import PIL.PngImagePlugin

    texts = PIL.PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", _XMP.decode(), zip=True)
    digits = (b"Exif\0\0" + _EXIF).hex()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{digits}\n", zip=True)
    return texts


def _other_bmps() -> Iterator[bytes]:
    """Kinds that Pillow does not write: masks of bits, run lengths, OS/2's header."""

    def bmp(bits: int, compression: int, rest: bytes, pixels: bytes) -> bytes:
        header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, bits, compression, 0, 0, 0, 0, 0)
        offset = 14 + len(header) + len(rest)
        start = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
        return start + header + rest + pixels

    palette = bytes(range(64)) * 16
    yield bmp(16, 3, struct.pack("<III", 0xF800, 0x07E0, 0x001F), bytes(range(32)))
    yield bmp(32, 6, struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF << 24), bytes(range(64)))
    yield bmp(8, 1, palette, b"\4\1\0\0\0\3\1\2\3\0\0\0\0\2\1\0\2\7\0\0\4\5\0\1")
    yield bmp(4, 2, palette[:64], b"\4\x12\0\0\0\4\x12\x34\0\0\0\2\1\1\2\x55\0\1")
    yield (
        struct.pack("<2sIHHI", b"BM", 0, 0, 0, 26)
        + struct.pack("<IHHHH", 12, 4, 4, 1, 24)
        + bytes(48)
    )


READERS: dict[str, Callable[[], Reader]] = {
    "jpeg": jpeg,
    "png": png,
    "bmp": bmp,
    "webp": webp,
    "gif": gif,
    "tiff": tiff,
    "multispectral": multispectral_tiff,
    "npy": npy,
    "avif": avif,
}
