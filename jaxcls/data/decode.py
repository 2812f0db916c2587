"""Encoded bytes to pixels: RGB, uint8, 0 to 255, [height, width, 3]."""

import contextlib
import io
import os
import struct
import warnings
from typing import cast

import numpy as np
import PIL.Image
import PIL.ImageColor
import simplejpeg

from jaxcls.errors import BrokenImageError

IMAGE_SUFFIXES = frozenset(
    {
        ".apng",
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    }
)

# Suffixes of files that are images too, and by what name their format goes: to be converted first.
UNREADABLE_FORMATS = {
    ".arw": "camera raw",
    ".cr2": "camera raw",
    ".cr3": "camera raw",
    ".dcm": "DICOM",
    ".dng": "camera raw",
    ".exr": "OpenEXR",
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".ico": "ICO",
    ".j2k": "JPEG 2000",
    ".jp2": "JPEG 2000",
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    ".nef": "camera raw",
    ".orf": "camera raw",
    ".pbm": "Netpbm",
    ".pgm": "Netpbm",
    ".pnm": "Netpbm",
    ".ppm": "Netpbm",
    ".psd": "Photoshop",
    ".raf": "camera raw",
    ".rw2": "camera raw",
    ".svg": "SVG",
    ".tga": "TGA",
    ".xcf": "GIMP",
}

# Those that are promised, and no more: Pillow reads some forty, with less care and other programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

MAX_PIXELS = PIL.Image.MAX_IMAGE_PIXELS or 89_478_485
# Pillow refuses an image of twice that size and only warns of a smaller one; here both are errors.
warnings.filterwarnings("error", category=PIL.Image.DecompressionBombWarning)
# Of photos whose EXIF block is damaged nobody wants to know.
warnings.filterwarnings("ignore", message=".*orrupt EXIF data", category=UserWarning)

_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_SCALES = (8, 4, 2)  # those that libjpeg decodes fast
_ENOUGH = 0.9

_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,
)


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image; what it holds is another matter."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def decode_image(
    data: bytes, *, where: str, background: str = "#ffffff", longest: int | None = None
) -> np.ndarray:
    """Decodes an image file's content, whatever its name says.

    Grey and palettes become RGB, 16 bits become 8, transparency is laid over `background`, and an
    image that a camera marked as turned (EXIF) is put upright.

    Args:
      data: a whole file: JPEG, PNG, WebP, GIF (first frame) or BMP.
      where: what to call this image in an error, for example "record 7 of digits train".
      background: colour behind transparent pixels, "#rrggbb".
      longest: the caller will shrink the image until its longer side has this many pixels. So a
        JPEG may be decoded at a half, a quarter or an eighth of its size, as long as that leaves
        nine tenths of them: an antialiased reduction that costs less than none.

    Returns:
      uint8 [height, width, 3], RGB.

    Raises:
      BrokenImageError: the bytes are no image, a damaged or incomplete one, or one of more than
        MAX_PIXELS.
    """
    if data[:2] == b"\xff\xd8":
        image = _decode_jpeg(data, longest)
        if image is not None:
            return image
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = _to_rgb(image, background)
            return _upright(pixels, _orientation(image.info.get("exif", b"")))
    except _UNREADABLE as error:
        # Pillow names its in-memory file by its address, which says nothing.
        unknown = isinstance(error, PIL.UnidentifiedImageError)
        reason = "not an image of a known kind" if unknown else error
        raise BrokenImageError(
            f"{where}: the image cannot be decoded ({reason}; {len(data)} bytes)"
        ) from error


def _decode_jpeg(data: bytes, longest: int | None) -> np.ndarray | None:
    """Decodes a common JPEG; None for the others: Pillow tolerates more and explains better."""
    try:
        height, width, colorspace = cast(
            tuple[int, int, str], simplejpeg.decode_jpeg_header(data)[:3]
        )
        if colorspace in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
            return None
        scale = _decoding_scale(max(height, width), longest)
        image = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            min_height=-(-height // scale),
            min_width=-(-width // scale),
            min_factor=scale,
        )
    except ValueError:
        return None
    place = data.find(_EXIF, 0, 1 << 16)
    return image if place < 0 else _upright(image, _orientation(data[place : place + (1 << 16)]))


def _decoding_scale(side: int, longest: int | None) -> int:
    """The largest scale that leaves about `longest` of `side` pixels, else 1."""
    if longest is None:
        return 1
    return next((scale for scale in _SCALES if side >= scale * longest * _ENOUGH), 1)


def _to_rgb(image: PIL.Image.Image, background: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        behind = PIL.Image.new("RGBA", image.size, PIL.ImageColor.getrgb(background))
        image = PIL.Image.alpha_composite(behind, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _orientation(exif: bytes) -> int:
    """How the camera was held, 1 to 8; 1, upright, if that is not said or not readable.

    Pillow's own reader warns on stderr of every photo whose EXIF block is damaged.
    """
    tiff = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order:
        with contextlib.suppress(struct.error):  # it ends too early
            (directory,) = struct.unpack_from(f"{order}L", tiff, 4)
            (count,) = struct.unpack_from(f"{order}H", tiff, directory)
            for start in range(directory + 2, directory + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHLH", tiff, start)
                if tag == _ORIENTATION:
                    return value if 1 <= value <= 8 else 1
    return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation (EXIF 2.32, section 4.6.4): a transposition, then flips."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
