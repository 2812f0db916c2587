import io
import struct

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import simplejpeg

from jaxcls.data.decode import MAX_PIXELS, decode_image
from jaxcls.errors import BrokenImageError, DataError, UserError


def photo(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def encode(image, kind, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
@pytest.mark.parametrize("shape", [(31, 40), (1, 1), (1, 70)])
def test_decodes_like_pillow(kind, shape):
    data = encode(photo(*shape), kind)
    image = decode_image(data, where="it")
    assert image.dtype == np.uint8
    assert image.shape == (*shape, 3)
    assert np.abs(image - pillow(data)).max() <= (2 if kind == "JPEG" else 0)


def test_grey_becomes_rgb():
    grey = photo(9, 7)[:, :, 0]
    for data in (encode(grey, "PNG"), encode(grey, "JPEG", quality=100)):
        image = decode_image(data, where="it")
        assert image.shape == (9, 7, 3)
        assert np.abs(image - grey[:, :, None].astype(int)).max() <= 2


def test_bit_depths_of_png():
    grey = photo(9, 7)[:, :, 0]
    deep = cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(deep, where="it")[:, :, 1], grey)
    deep_rgb = cv2.imencode(".png", photo(9, 7)[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(deep_rgb, where="it"), photo(9, 7))
    bits = encode(grey > 127, "PNG")
    np.testing.assert_array_equal(decode_image(bits, where="it")[:, :, 2], (grey > 127) * 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_is_known_by_its_content(kind, tmp_path):
    """Nothing but bytes is looked at: a PNG named .jpg is a PNG."""
    data = encode(photo(9, 7), kind)
    assert decode_image(data, where="cat.bmp").shape == (9, 7, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_kinds_of_jpeg(options):
    data = encode(photo(16, 16), "JPEG", **options)
    assert np.abs(decode_image(data, where="it") - pillow(data)).max() <= 2


def test_cmyk_and_ycck_jpeg():
    """Four channels go to Pillow, which knows that Adobe stores them inverted."""
    image = PIL.Image.fromarray(photo(16, 16)).convert("CMYK")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100)
    data = bytearray(file.getvalue())
    assert np.abs(decode_image(bytes(data), where="it") - photo(16, 16).astype(int)).max() <= 8
    marker = data.index(b"Adobe") + 11
    assert data[marker] == 0
    data[marker] = 2  # the same samples, said to be YCCK
    assert np.abs(decode_image(bytes(data), where="it") - pillow(bytes(data))).max() == 0


def transparent(kind, mode):
    """Left half opaque black, right half transparent."""
    image = PIL.Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 4))
    if mode == "P":
        image = image.quantize(4)
    elif mode == "LA":
        image = image.convert("LA")
    file = io.BytesIO()
    image.save(file, kind, lossless=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA"), ("GIF", "RGBA")],
)
def test_transparency_shows_the_background(kind, mode):
    image = decode_image(transparent(kind, mode), where="it", background="#0a64ff")
    assert (image[:, :4] == 0).all()
    assert (image[:, 4:] == (10, 100, 255)).all()


def test_half_transparent_pixels_are_blended():
    pixels = np.full((3, 3, 4), (200, 100, 0, 51), np.uint8)  # 51 / 255 = 0.2
    image = decode_image(encode(pixels, "PNG"), where="it", background="#ffffff")
    np.testing.assert_allclose(image[0, 0], [244, 224, 204], atol=1)


def test_first_frame_of_an_animation():
    frames = [PIL.Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(
            file,
            kind,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if kind == "WEBP" else {}),
        )
        assert (decode_image(file.getvalue(), where="it") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_put_upright_like_pillow_does(kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(20, 12), kind, exif=exif.tobytes(), quality=95)
    with PIL.Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    image = decode_image(data, where="it")
    assert image.shape == ((20, 12, 3) if orientation < 5 else (12, 20, 3))
    assert image.flags.c_contiguous
    assert np.abs(image - reference).max() <= 2


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", b"Exif\0\0nonsense"])
def test_damaged_exif_does_not_matter(exif):
    data = encode(photo(20, 12), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    np.testing.assert_array_equal(
        decode_image(data[:2] + segment + data[2:], where="it"), decode_image(data, where="it")
    )


@pytest.mark.parametrize(
    ("longest", "shape"),
    [
        (None, (500, 401)),
        (278, (500, 401)),
        (277, (250, 201)),
        (139, (250, 201)),
        (138, (125, 101)),
        (69, (63, 51)),
        (1, (63, 51)),
    ],
)
def test_jpegs_are_decoded_not_much_smaller_than_asked(longest, shape):
    image = cv2.GaussianBlur(photo(500, 401), (0, 0), 4)
    data = encode(image, "JPEG", quality=95)
    small = decode_image(data, where="it", longest=longest)
    assert small.shape == (*shape, 3)
    assert max(shape) >= 0.9 * (longest or 500)
    reference = PIL.Image.fromarray(image).resize(shape[::-1], PIL.Image.Resampling.BOX)
    assert np.abs(small - np.asarray(reference).astype(int)).mean() < 3


def test_twenty_megapixels():
    data = encode(np.full((4000, 5000, 3), 90, np.uint8), "JPEG")
    assert decode_image(data, where="it", longest=512).shape == (500, 625, 3)
    assert decode_image(data, where="it").shape == (4000, 5000, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.8])
def test_truncated_file_names_the_record(kind, share):
    data = encode(photo(64, 64), kind)
    with pytest.raises(DataError, match=r"^record 7 of photos train: .*cannot be decoded"):
        decode_image(data[: int(len(data) * share)], where="record 7 of photos train")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_not_an_image(data):
    with pytest.raises(DataError, match=f"cat.txt: .*{len(data)} bytes"):
        decode_image(data, where="cat.txt")


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 60_000])
def test_decompression_bomb(side):
    bmp = bytearray(encode(photo(2, 2), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    jpeg = bytearray(encode(photo(2, 2), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", side, side)
    for bomb in (bmp, jpeg):
        with pytest.raises(BrokenImageError, match="bomb"):
            decode_image(bytes(bomb), where="big.bmp")


@pytest.mark.filterwarnings("ignore:.*orrupt EXIF data:UserWarning")  # as the module has it
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_damaged_bytes_give_an_image_or_the_one_error(kind):
    exif = {} if kind in ("GIF", "BMP") else {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}
    data = encode(photo(24, 24), kind, **exif)
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(len(data), size=3):
            damaged[place] = generator.integers(256)
        try:
            image = decode_image(bytes(damaged), where="it")
        except BrokenImageError:
            continue
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)


def test_nothing_on_stderr(capfd):
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encode(photo(64, 64), kind)
        with pytest.raises(DataError):
            decode_image(data[: len(data) // 2], where="it")
    assert capfd.readouterr() == ("", "")


def test_data_errors_are_user_errors():
    assert issubclass(DataError, UserError)
    assert issubclass(DataError, ValueError)


def test_jpeg_of_simplejpeg_round_trips():
    image = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    data = simplejpeg.encode_jpeg(image, quality=100)
    assert np.abs(decode_image(data, where="it") - image.astype(int)).max() <= 2


@pytest.mark.parametrize("kind", ["AVIF", "TIFF", "DDS", "EPS", "ICO"])
def test_kinds_that_are_not_promised(kind):
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(file, kind)
    with pytest.raises(BrokenImageError, match="not an image of a known kind"):
        decode_image(file.getvalue(), where="it")
