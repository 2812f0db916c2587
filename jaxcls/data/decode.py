"""Encoded bytes to pixels: RGB, uint8, 0 to 255, [height, width, 3]."""

import io
import logging
import os
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
from jaxcls.data.orientation import jpeg_orientation, orientation, upright
from jaxcls.system.errors import BrokenImageError

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

# Of a JPEG, which is decoded at a fraction of its size in little memory; whatever else is decoded
# whole, and there Pillow's own bound holds, which lets the largest scans pass.
MAX_PIXELS = 300_000_000
MAX_WHOLE_PIXELS = 178_956_970

# Ours are the bounds that hold here.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
# Of photos whose EXIF block is damaged nobody wants to know.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# It logs what it raises too.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

_WEB_PAGE = "a web page"
_LFS_POINTER = "a Git LFS pointer"
# The first bytes of files, those that are decoded and others that may lie among them.
_SIGNATURES = {
    b"\xff\xd8": "JPEG",
    png.SIGNATURE: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0\x10\0\0\0CR": "camera raw",
    **dict.fromkeys(PIL.TiffImagePlugin.PREFIXES, "TIFF"),
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"II\xbc\x01": "JPEG XR",
    b"IIRO": "camera raw",
    b"IIRS": "camera raw",
    b"IIU\0": "camera raw",
    b"MMOR": "camera raw",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"8BPS": "Photoshop",
    b"gimp xcf": "GIMP",
    b"v/1\x01": "OpenEXR",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML, such as SVG",
    b"version https://git-lfs": _LFS_POINTER,
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
}
# Brands of ISO's media files (ISO/IEC 14496-12); what a file names first in this order, it is.
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    b"crx ": "camera raw",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}
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
    "as in a decompression bomb; if it is a true picture, raise data.max_pixels (predict: "
    "--max-pixels)"
)
_SCALES = (8, 4, 2)  # those that libjpeg decodes fast
_ENOUGH = 0.9
_WHITE_IS_ZERO = 0  # of TIFF's photometric interpretations
_REDUCED = 1  # a bit of TIFF's NewSubfileType
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _DNG = 254, 258, 262, 284, 50706  # tags of TIFF

_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    PIL.Image.DecompressionBombError,
)


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image; what it holds is another matter."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def decode_image(
    data: bytes,
    *,
    where: str,
    background: str = "#ffffff",
    longest: int | None = None,
    scale_above: int | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decodes an image file's content, whatever its name says.

    Grey, palettes and CMYK become RGB, 16 bits become 8, transparency is laid over `background`,
    and an image that a camera marked as turned (EXIF or XMP) is put upright. Of several frames or
    pages the first is taken.

    Args:
      data: a whole file: JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP.
      where: what to call this image in an error, for example "record 7 of digits train".
      background: colour behind transparent pixels, "#rrggbb".
      longest: the caller will shrink the image until its longer side has this many pixels. So a
        JPEG may be decoded at a half, a quarter or an eighth of its size, as long as that leaves
        nine tenths of them: an antialiased reduction that costs less than none.
      scale_above: a JPEG of more pixels than this may be decoded at a half, a quarter or an eighth
        of its size, until it has no more.
      max_pixels: an image of more is refused, by what its header says and before memory is taken
        for it (None: MAX_PIXELS for a JPEG, MAX_WHOLE_PIXELS for others).

    Returns:
      uint8 [height, width, 3], RGB.

    Raises:
      BrokenImageError: the bytes are no image that is read, a damaged or incomplete one, or one of
        too many pixels.
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
            f"{where}: the image cannot be decoded ({error}; {len(data)} bytes)"
        ) from error


def image_header(data: bytes) -> tuple[str, int, int]:
    """Format, height and width, in pixels as stored, of an image that `decode_image` decodes."""
    kind = format_of(data)
    if kind == "BMP":
        header = bmp.read_header(data)
        return kind, header.height, header.width
    with _PLUGINS[kind](io.BytesIO(png.read_png(data).pixels if kind == "PNG" else data)) as image:
        return kind, image.height, image.width


def format_of(data: bytes) -> str:
    """The format that a file's first bytes say, one of those that are decoded.

    Raises:
      ValueError: it is none of them; the message says what it is, where that is known.
    """
    text = data[:64].lstrip().lower()
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WEBP"
    elif data[4:8] == b"ftyp":
        named = data[8 : min(int.from_bytes(data[:4]), 1024)]
        brands = {named[place : place + 4] for place in range(0, len(named), 4)}
        kind = next((kind for brand, kind in _BRANDS.items() if brand in brands), None)
    else:
        starts = (kind for start, kind in _SIGNATURES.items() if data.startswith(start))
        kind = next(starts, None) or next(
            (kind for start, kind in _SIGNATURES.items() if text.startswith(start)), None
        )
    if kind is None:
        raise ValueError("not an image of a known kind")
    if kind == _WEB_PAGE:  # such as an error or login page
        raise ValueError("it is a web page, not an image; download the image again")
    if kind == _LFS_POINTER:
        raise ValueError("it is a Git LFS pointer, not an image; fetch the file with git lfs pull")
    if kind not in _PLUGINS and kind != "BMP":
        raise ValueError(f"it is {kind}, which is not read; convert it to JPEG or PNG")
    return kind


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
            pass  # Pillow tolerates more and explains better
    with PIL.JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
        _check_size(image.height, image.width, limit)
        scale = _decoding_scale(image.height, image.width, longest, scale_above)
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        return upright(_to_rgb(image, background), jpeg_orientation(data))


def _decoding_scale(height: int, width: int, longest: int | None, scale_above: int | None) -> int:
    """The largest scale that leaves about `longest` pixels, or the least for `scale_above`."""
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
    """AVIF, GIF, TIFF and WebP, by Pillow."""
    own = PIL.Image.MAX_IMAGE_PIXELS
    if own is not None and limit > 2 * own:  # Pillow's error; it warns of half of that
        PIL.Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    try:
        image = _PLUGINS[kind](io.BytesIO(data))
    except SyntaxError as error:
        raise ValueError(
            f"{kind} that is damaged or of a kind that is not read, {error}; convert it to 8 or 16 "
            f"bits of grey or RGB"
        ) from error
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {limit:,} pixels, {_BOMB}") from error
    with image:
        _check_size(image.height, image.width, limit)
        if isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
            return _decode_tiff(image, background)  # Pillow puts it upright
        frame = image.tile[0].extents if kind == "GIF" else None
        pixels = _to_rgb(image, background)
        if frame not in (None, (0, 0, image.width, image.height)):
            pixels = _on_canvas(pixels, frame, background)
        # Where an AVIF says otherwise than its EXIF, Pillow has mended that; XMP has no say.
        blocks = ("exif",) if kind == "AVIF" else ("exif", "xmp")
        return upright(pixels, orientation(image.info.get(name, b"") for name in blocks))


def _on_canvas(pixels: np.ndarray, frame: tuple[int, int, int, int], background: str) -> np.ndarray:
    """Puts the background where a GIF's first frame leaves its canvas free."""
    left, top, right, bottom = frame
    canvas = np.empty_like(pixels)
    canvas[:] = PIL.ImageColor.getrgb(background)
    canvas[top:bottom, left:right] = pixels[top:bottom, left:right]
    return canvas


def _decode_tiff(image: PIL.TiffImagePlugin.TiffImageFile, background: str) -> np.ndarray:
    """The first page."""
    tags = image.tag_v2
    if _DNG in tags or tags.get(_SUBFILE, 0) & _REDUCED:
        raise ValueError("it is camera raw or begins with a preview; convert it to JPEG or PNG")
    bits = max(tags.get(_BITS, (1,)))
    if tags.get(_PLANAR, 1) != 1 and bits != 8:
        raise ValueError(f"TIFF of {bits} bits with a plane a colour is not read; convert it")
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # of 16 bits Pillow does not say so
    if image.mode.startswith("I;16"):
        return _grey_of_words(image, bits) ^ (255 if inverted else 0)
    return _to_rgb(image, background)


def _grey_of_words(image: PIL.Image.Image, bits: int) -> np.ndarray:
    """The highest 8 of each sample's bits, thrice."""
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _to_rgb(image: PIL.Image.Image, background: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _grey_of_words(image, 16)
    if image.mode in ("I", "F"):
        raise ValueError(
            "grey of 32 bits, signed or of floating point, which does not say what is white; "
            "convert it to 8 or 16 bits"
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
