"""Encoded bytes to pixels: uint8, 0 to 255, [height, width, channels]; RGB if there are three."""

import io
import logging
import struct
import warnings
import zlib
from typing import NamedTuple, cast

import cv2
import numpy as np
import PIL.AvifImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageColor
import PIL.ImageFile
import PIL.ImageOps
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin
import simplejpeg

from jaxcls.data import bmp, png
from jaxcls.data.arrays import (
    TiffPage,
    ValueRange,
    npy_size,
    read_npy,
    require_channels,
    to_levels,
)
from jaxcls.data.formats import format_of
from jaxcls.data.orientation import jpeg_orientation, orientation, upright
from jaxcls.system.errors import BrokenImageError, DataError

# A large JPEG is decoded at a fraction of its size, in little memory. Other formats are decoded
# whole, with Pillow's own limit, which allows the largest scans.
MAX_PIXELS = 300_000_000
MAX_WHOLE_PIXELS = 178_956_970

# This module checks the number of pixels itself.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
# A damaged EXIF block in a photo does not matter.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# It logs the same as it raises.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

_PLUGINS: dict[str, type[PIL.ImageFile.ImageFile]] = {
    "AVIF": PIL.AvifImagePlugin.AvifImageFile,
    "GIF": PIL.GifImagePlugin.GifImageFile,
    "JPEG": PIL.JpegImagePlugin.JpegImageFile,
    "PNG": PIL.PngImagePlugin.PngImageFile,
    "TIFF": PIL.TiffImagePlugin.TiffImageFile,
    "WEBP": PIL.WebPImagePlugin.WebPImageFile,
}

COLORS = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes, by their number of channels

_JPEG = b"\xff\xd8"
_BOMB = (
    "as in a decompression bomb; if it is a real picture, raise data.max_pixels (predict: "
    "--max-pixels)"
)
_SCALES = (8, 4, 2)  # reductions that libjpeg decodes fast
_ENOUGH = 0.9  # of the pixels that the caller needs
_WHITE_IS_ZERO = 0  # a TIFF photometric interpretation
_REDUCED = 1  # a bit of TIFF's NewSubfileType
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _DNG = 254, 258, 262, 284, 50706  # TIFF tags

_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AssertionError,  # Pillow's, of a palette that is missing
    struct.error,
    ArithmeticError,  # as the next one, of tifffile
    zlib.error,
    PIL.Image.DecompressionBombError,
)


class _Wanted(NamedTuple):
    """What the caller wants: `channels`, `background` and `value_range` of `decode_image`.

    Attributes:
      limit: the largest number of pixels.
    """

    channels: int
    background: str
    value_range: ValueRange
    limit: int

    def behind(self) -> np.ndarray:
        """Returns the background, uint8 [channels]; with an alpha of 0."""
        mode = COLORS[self.channels]
        if mode == "RGBA":
            return np.array([*PIL.ImageColor.getrgb(self.background), 0], np.uint8)
        return np.array(PIL.ImageColor.getcolor(self.background, mode), np.uint8)


def decode_image(
    data: bytes,
    *,
    where: str,
    channels: int = 3,
    value_range: ValueRange = None,
    background: str = "#ffffff",
    longest: int | None = None,
    scale_above: int | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decodes the content of an image file, whatever its name.

    Grey, palettes and CMYK become RGB, 16 bits become 8, transparent pixels get the background's
    colour, and images are turned upright by their EXIF or XMP orientation. If there are several
    frames or pages, only the first is decoded.

    For one channel, the same becomes grey (ITU-R 601, as Pillow's "L"). For four, alpha is kept,
    255 where a file has none. A .npy file, and a TIFF for any other number, must have so many
    channels (a .npy file may be grey for RGB), and each is taken as it is; so must a TIFF of more
    than 8 bits with a range.

    Args:
      data: a whole file: JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or .npy.
      where: the name of the image in errors, for example "record 7 of digits train".
      channels: of the result.
      value_range: the numbers that become 0 and 255, of images of more than 8 bits
        (`arrays.to_levels`).
      background: the colour behind transparent pixels, "#rrggbb".
      longest: the length in pixels to which the caller will shrink the longer side. A JPEG may be
        decoded at 1/2, 1/4 or 1/8 of its size if that leaves nine tenths of this length; it is
        antialiased and faster than decoding the whole image.
      scale_above: a JPEG of more pixels than this may be decoded at 1/2, 1/4 or 1/8 of its size,
        until it has no more than this.
      max_pixels: the largest number of pixels; checked against the header before memory is
        allocated (None: MAX_PIXELS for a JPEG, MAX_WHOLE_PIXELS for others).

    Returns:
      uint8 [height, width, channels].

    Raises:
      BrokenImageError: the data is not an image of a supported format, is damaged or incomplete,
        has too many pixels or other channels, or needs a range.
      DataError: the pixels do not fit into memory, or a library is not installed.
    """
    limit = max_pixels or (MAX_PIXELS if data[:2] == _JPEG else MAX_WHOLE_PIXELS)
    wanted = _Wanted(channels, background, value_range, limit)
    try:
        kind = "JPEG" if data[:2] == _JPEG else format_of(data)
        if kind == "NPY":
            return _decode_npy(data, wanted)
        if kind == "TIFF" and (pixels := _decode_deep_tiff(data, wanted)) is not None:
            return pixels
        if channels not in COLORS:
            raise ValueError(
                f"a {kind} has 1, 3 or 4 channels, but data.channels is {channels}; convert it to "
                f"TIFF or .npy, or train with data.channels 1, 3 or 4"
            )
        if kind == "JPEG":
            return _decode_jpeg(data, wanted, longest, scale_above)
        if kind == "BMP":
            return _decode_bmp(data, wanted)
        if kind == "PNG":
            return _decode_png(data, wanted)
        return _decode_other(data, kind, wanted)
    except DataError:
        raise
    except _UNREADABLE as error:
        raise BrokenImageError(
            f"{where}: the image cannot be decoded ({str(error) or repr(error)}; {len(data)} bytes)"
        ) from error
    except MemoryError as error:  # not a BrokenImageError: another machine may decode it
        raise DataError(
            f"{where}: the pixels of the image do not fit into memory ({len(data)} bytes when "
            f"encoded); remove it, or lower data.max_pixels"
        ) from error


def image_header(data: bytes, *, channels: int = 3) -> tuple[str, int, int]:
    """Returns format, height and width (as stored, in pixels) of an image that can be decoded.

    Args:
      data: a whole file.
      channels: with which it can be decoded.
    """
    kind = format_of(data)
    if kind == "NPY":
        return kind, *npy_size(data, channels)
    if kind == "TIFF" and channels not in COLORS:
        page = TiffPage(data)
        return kind, page.height, page.width
    if kind == "BMP":
        header = bmp.read_header(data)
        return kind, header.height, header.width
    with _PLUGINS[kind](io.BytesIO(png.read_png(data).pixels if kind == "PNG" else data)) as image:
        return kind, image.height, image.width


def _decode_npy(data: bytes, wanted: _Wanted) -> np.ndarray:
    _check_size(*npy_size(data, wanted.channels), wanted.limit)
    levels = to_levels(read_npy(data, wanted.channels), wanted.value_range)
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], wanted.channels)))


def _decode_deep_tiff(data: bytes, wanted: _Wanted) -> np.ndarray | None:
    """Decodes a TIFF whose samples are taken as they are; None if it is one of colours."""
    if wanted.channels in COLORS and wanted.value_range is None:
        return None
    page = TiffPage(data)
    if wanted.channels in COLORS and page.bits <= 8:
        return None
    _check_size(page.height, page.width, wanted.limit)
    if not (page.channels == 1 and wanted.channels == 3):
        require_channels(page.channels, wanted.channels, of="its first page")
    levels = page.levels(wanted.value_range)
    whole = np.broadcast_to(levels, (*levels.shape[:2], wanted.channels))
    return np.ascontiguousarray(upright(whole, page.orientation))


def _decode_jpeg(
    data: bytes, wanted: _Wanted, longest: int | None, scale_above: int | None
) -> np.ndarray:
    try:
        height, width, colorspace = cast(
            tuple[int, int, str], simplejpeg.decode_jpeg_header(data)[:3]
        )
        common = colorspace not in ("CMYK", "YCCK")
    except ValueError:
        common, height, width = False, 1, 1
    _check_size(height, width, wanted.limit)
    if common:
        scale = _decoding_scale(height, width, longest, scale_above)
        try:
            image = simplejpeg.decode_jpeg(
                data,
                colorspace="RGB",
                min_height=-(-height // scale),
                min_width=-(-width // scale),
                min_factor=scale,
            )
            return upright(_from_rgb(image, wanted), jpeg_orientation(data))
        except ValueError:
            pass  # Pillow accepts more files and has better messages
    with PIL.JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
        _check_size(image.height, image.width, wanted.limit)
        scale = _decoding_scale(image.height, image.width, longest, scale_above)
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        return upright(_to_pixels(image, wanted), jpeg_orientation(data))


def _decoding_scale(height: int, width: int, longest: int | None, scale_above: int | None) -> int:
    """Returns the largest scale that leaves `longest`, or the smallest that meets `scale_above`."""
    side, pixels = max(height, width), height * width
    if longest is not None:
        for scale in _SCALES:
            if side >= scale * longest * _ENOUGH:
                return scale
    if scale_above is not None and pixels > scale_above:
        return next((s for s in reversed(_SCALES) if pixels <= scale_above * s**2), _SCALES[0])
    return 1


def _decode_bmp(data: bytes, wanted: _Wanted) -> np.ndarray:
    header = bmp.read_header(data)
    _check_size(header.height, header.width, wanted.limit)
    pixels = bmp.read_pixels(data, header)
    return _to_pixels(PIL.Image.fromarray(pixels), wanted)


def _decode_png(data: bytes, wanted: _Wanted) -> np.ndarray:
    file = png.read_png(data)
    with PIL.PngImagePlugin.PngImageFile(io.BytesIO(file.pixels)) as image:
        _check_size(image.height, image.width, wanted.limit)
        if wanted.value_range is not None and file.bits == 16:
            pixels = _to_pixels(_levels_of_png(file.pixels, wanted.value_range), wanted)
        else:
            pixels = _to_pixels(image, wanted)
        if file.key:
            key = png.is_key(image, file)[:, :, None]
            pixels = np.where(key, wanted.behind(), pixels)
    return upright(pixels, file.orientation)


def _levels_of_png(data: bytes, value_range: ValueRange) -> PIL.Image.Image:
    """Maps the colours of a PNG of 16 bits, of which Pillow keeps 8, and keeps 8 bits of alpha."""
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("a damaged PNG of 16 bits")
    levels = to_levels(samples, value_range)
    if levels.ndim == 2:
        return PIL.Image.fromarray(levels)
    colors = [levels[:, :, 2::-1]]  # OpenCV's are blue, green and red
    alpha = [to_levels(samples[:, :, 3:], None)] if samples.shape[2] == 4 else []
    return PIL.Image.fromarray(np.concatenate(colors + alpha, axis=2))


def _decode_other(data: bytes, kind: str, wanted: _Wanted) -> np.ndarray:
    """Decodes AVIF, GIF, TIFF and WebP with Pillow."""
    own, limit = PIL.Image.MAX_IMAGE_PIXELS, wanted.limit
    if own is not None and limit > 2 * own:  # Pillow raises an error above twice its limit
        PIL.Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    try:
        image = _PLUGINS[kind](io.BytesIO(data))
    except SyntaxError as error:
        raise ValueError(
            f"{kind} that is damaged or of an unsupported kind, {error}; convert it to 8 or 16 "
            f"bits of grey or RGB"
        ) from error
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {limit:,} pixels, {_BOMB}") from error
    with image:
        _check_size(image.height, image.width, limit)
        if isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
            return _decode_tiff(image, wanted)  # Pillow turns it upright
        frame = image.tile[0].extents if kind == "GIF" else None
        pixels = _to_pixels(image, wanted)
        if frame not in (None, (0, 0, image.width, image.height)):
            pixels = _on_canvas(pixels, frame, wanted)
        # Pillow has already adapted an AVIF's EXIF to its own rotation; XMP does not count there.
        blocks = ("exif",) if kind == "AVIF" else ("exif", "xmp")
        return upright(pixels, orientation(image.info.get(name, b"") for name in blocks))


def _on_canvas(pixels: np.ndarray, frame: tuple[int, int, int, int], wanted: _Wanted) -> np.ndarray:
    """Fills the part of a GIF's canvas that its first frame does not cover with the background."""
    left, top, right, bottom = frame
    canvas = np.empty_like(pixels)
    canvas[:] = wanted.behind()
    canvas[top:bottom, left:right] = pixels[top:bottom, left:right]
    return canvas


def _decode_tiff(image: PIL.TiffImagePlugin.TiffImageFile, wanted: _Wanted) -> np.ndarray:
    """Decodes the first page."""
    tags = image.tag_v2
    if _DNG in tags or tags.get(_SUBFILE, 0) & _REDUCED:
        raise ValueError("it is camera raw or begins with a preview; convert it to JPEG or PNG")
    bits = max(tags.get(_BITS, (1,)))
    if tags.get(_PLANAR, 1) != 1 and bits != 8:
        raise ValueError(
            f"TIFF of {bits} bits with a separate plane for each colour is not supported; "
            f"convert it to one plane"
        )
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # Pillow ignores it for 16 bits
    if image.mode.startswith("I;16"):
        grey = _highest_bits(image, bits)
        return _to_pixels(PIL.ImageOps.invert(grey) if inverted else grey, wanted)
    return _to_pixels(image, wanted)


def _highest_bits(image: PIL.Image.Image, bits: int) -> PIL.Image.Image:
    """Returns the highest 8 bits of each sample of a grey image."""
    return PIL.Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))


def _to_pixels(image: PIL.Image.Image, wanted: _Wanted) -> np.ndarray:
    if image.mode.startswith("I;16"):
        image = _highest_bits(image, 16)
    if image.mode in ("I", "F"):
        raise ValueError(
            "grey of 32 bits, signed or floating point, has no defined white; convert it to 8 or "
            "16 bits, or train with data.value_range, the numbers that shall become 0 and 255"
        )
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        if wanted.channels == 4:
            return np.asarray(image)
        color = PIL.ImageColor.getrgb(wanted.background)
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, color), image)
    return _from_rgb(np.asarray(image.convert("RGB")), wanted)


def _from_rgb(pixels: np.ndarray, wanted: _Wanted) -> np.ndarray:
    """Makes the channels that are wanted of opaque RGB."""
    if wanted.channels == 3:
        return pixels
    mode = COLORS[wanted.channels]
    return np.asarray(PIL.Image.fromarray(pixels).convert(mode)).reshape(*pixels.shape[:2], -1)


def _check_size(height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise ValueError(f"{width} x {height} pixels are more than {limit:,}, {_BOMB}")
