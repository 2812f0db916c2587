"""Encoded bytes to pixels: RGB, uint8, 0 to 255, [height, width, 3]."""

import io
import logging
import struct
import warnings
from typing import cast

import numpy as np
import PIL.AvifImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageColor
import PIL.ImageFile
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin
import simplejpeg

from jaxcls.data import bmp, png
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
    PIL.Image.DecompressionBombError,
)


def decode_image(
    data: bytes,
    *,
    where: str,
    background: str = "#ffffff",
    longest: int | None = None,
    scale_above: int | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decodes the content of an image file, whatever its name.

    Grey, palettes and CMYK become RGB, 16 bits become 8, transparent pixels get the background's
    colour, and images are turned upright by their EXIF or XMP orientation. If there are several
    frames or pages, only the first is decoded.

    Args:
      data: a whole file: JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP.
      where: the name of the image in errors, for example "record 7 of digits train".
      background: the colour behind transparent pixels, "#rrggbb".
      longest: the length in pixels to which the caller will shrink the longer side. A JPEG may be
        decoded at 1/2, 1/4 or 1/8 of its size if that leaves nine tenths of this length; it is
        antialiased and faster than decoding the whole image.
      scale_above: a JPEG of more pixels than this may be decoded at 1/2, 1/4 or 1/8 of its size,
        until it has no more than this.
      max_pixels: the largest number of pixels; checked against the header before memory is
        allocated (None: MAX_PIXELS for a JPEG, MAX_WHOLE_PIXELS for others).

    Returns:
      uint8 [height, width, 3], RGB.

    Raises:
      BrokenImageError: the data is not an image of a supported format, is damaged or incomplete, or
        has too many pixels.
      DataError: the pixels do not fit into memory.
    """
    limit = max_pixels or (MAX_PIXELS if data[:2] == _JPEG else MAX_WHOLE_PIXELS)
    try:
        if data[:2] == _JPEG:
            return _decode_jpeg(data, background, limit, longest, scale_above)
        kind = format_of(data)
        if kind == "BMP":
            return _decode_bmp(data, background, limit)
        if kind == "PNG":
            return _decode_png(data, background, limit)
        return _decode_other(data, kind, background, limit)
    except _UNREADABLE as error:
        raise BrokenImageError(
            f"{where}: the image cannot be decoded ({str(error) or repr(error)}; {len(data)} bytes)"
        ) from error
    except MemoryError as error:  # not a BrokenImageError: another machine may decode it
        raise DataError(
            f"{where}: the pixels of the image do not fit into memory ({len(data)} bytes when "
            f"encoded); remove it, or lower data.max_pixels"
        ) from error


def image_header(data: bytes) -> tuple[str, int, int]:
    """Returns format, height and width (as stored, in pixels) of an image that can be decoded."""
    kind = format_of(data)
    if kind == "BMP":
        header = bmp.read_header(data)
        return kind, header.height, header.width
    with _PLUGINS[kind](io.BytesIO(png.read_png(data).pixels if kind == "PNG" else data)) as image:
        return kind, image.height, image.width


def _decode_jpeg(
    data: bytes, background: str, limit: int, longest: int | None, scale_above: int | None
) -> np.ndarray:
    try:
        height, width, colorspace = cast(
            tuple[int, int, str], simplejpeg.decode_jpeg_header(data)[:3]
        )
        common = colorspace not in ("CMYK", "YCCK")
    except ValueError:
        common, height, width = False, 1, 1
    _check_size(height, width, limit)
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
            return upright(image, jpeg_orientation(data))
        except ValueError:
            pass  # Pillow accepts more files and has better messages
    with PIL.JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
        _check_size(image.height, image.width, limit)
        scale = _decoding_scale(image.height, image.width, longest, scale_above)
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        return upright(_to_rgb(image, background), jpeg_orientation(data))


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


def _decode_bmp(data: bytes, background: str, limit: int) -> np.ndarray:
    header = bmp.read_header(data)
    _check_size(header.height, header.width, limit)
    pixels = bmp.read_pixels(data, header)
    return _to_rgb(PIL.Image.fromarray(pixels), background)


def _decode_png(data: bytes, background: str, limit: int) -> np.ndarray:
    file = png.read_png(data)
    with PIL.PngImagePlugin.PngImageFile(io.BytesIO(file.pixels)) as image:
        _check_size(image.height, image.width, limit)
        pixels = _to_rgb(image, background)
        if file.key:
            color = np.array(PIL.ImageColor.getrgb(background), np.uint8)
            pixels = np.where(png.is_key(image, file)[:, :, None], color, pixels)
    return upright(pixels, file.orientation)


def _decode_other(data: bytes, kind: str, background: str, limit: int) -> np.ndarray:
    """Decodes AVIF, GIF, TIFF and WebP with Pillow."""
    own = PIL.Image.MAX_IMAGE_PIXELS
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
            return _decode_tiff(image, background)  # Pillow turns it upright
        frame = image.tile[0].extents if kind == "GIF" else None
        pixels = _to_rgb(image, background)
        if frame not in (None, (0, 0, image.width, image.height)):
            pixels = _on_canvas(pixels, frame, background)
        # Pillow has already adapted an AVIF's EXIF to its own rotation; XMP does not count there.
        blocks = ("exif",) if kind == "AVIF" else ("exif", "xmp")
        return upright(pixels, orientation(image.info.get(name, b"") for name in blocks))


def _on_canvas(pixels: np.ndarray, frame: tuple[int, int, int, int], background: str) -> np.ndarray:
    """Fills the part of a GIF's canvas that its first frame does not cover with the background."""
    left, top, right, bottom = frame
    canvas = np.empty_like(pixels)
    canvas[:] = PIL.ImageColor.getrgb(background)
    canvas[top:bottom, left:right] = pixels[top:bottom, left:right]
    return canvas


def _decode_tiff(image: PIL.TiffImagePlugin.TiffImageFile, background: str) -> np.ndarray:
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
        return _grey_of_words(image, bits) ^ (255 if inverted else 0)
    return _to_rgb(image, background)


def _grey_of_words(image: PIL.Image.Image, bits: int) -> np.ndarray:
    """Returns the highest 8 bits of each sample, in three equal channels."""
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _to_rgb(image: PIL.Image.Image, background: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _grey_of_words(image, 16)
    if image.mode in ("I", "F"):
        raise ValueError(
            "grey of 32 bits, signed or floating point, has no defined white; convert it to 8 or "
            "16 bits"
        )
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        behind = PIL.Image.new("RGBA", image.size, PIL.ImageColor.getrgb(background))
        image = PIL.Image.alpha_composite(behind, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _check_size(height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise ValueError(f"{width} x {height} pixels are more than {limit:,}, {_BOMB}")
