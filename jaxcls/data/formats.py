"""Which files are images, by their names, and which format they have, by their first bytes."""

import os

import PIL.TiffImagePlugin

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DECODED = frozenset({"AVIF", "BMP", "GIF", "JPEG", "NPY", "PNG", "TIFF", "WEBP"})

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
        ".npy",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    }
)

# Suffixes of images that must be converted first, and the names of their formats.
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

_WEB_PAGE = "a web page"
_LFS_POINTER = "a Git LFS pointer"
# The first bytes of files: of formats that are decoded, and of others found among images.
_SIGNATURES = {
    b"\xff\xd8": "JPEG",
    PNG_SIGNATURE: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"\x93NUMPY": "NPY",
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
# Brands of ISO media files (ISO/IEC 14496-12). The first one here that a file names is its format.
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    b"crx ": "camera raw",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}


def is_image_name(name: str) -> bool:
    """Returns whether a file has an image's suffix, whatever it contains."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def format_of(data: bytes) -> str:
    """Returns a file's format, one of `DECODED`, by its first bytes.

    Raises:
      ValueError: it is another format; the message names it if it is known.
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
    if kind not in DECODED:
        raise ValueError(f"it is {kind}, which is not supported; convert it to JPEG or PNG")
    return kind
