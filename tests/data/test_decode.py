import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import simplejpeg
import tifffile

from jaxcls.config import DataConfig
from jaxcls.data.decode import MAX_PIXELS, decode_image, image_header
from jaxcls.data.formats import IMAGE_SUFFIXES, UNREADABLE_FORMATS, is_image_name
from jaxcls.data.images import training_image, whole_image
from jaxcls.system.errors import BrokenImageError, DataError, UserError


def photo(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def encode(image, kind, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def encode_cmyk(image, kind, **options):
    file = io.BytesIO()
    image.convert("CMYK").save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG", "AVIF", "TIFF"])
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


def test_an_image_beyond_memory_is_named_but_is_not_broken(monkeypatch):
    """Otherwise one machine would skip an image that another one trains on."""
    data = encode(photo(9, 7), "PNG")

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("jaxcls.data.decode._to_pixels", no_memory)
    with pytest.raises(DataError, match=r"it: the pixels .* do not fit into memory") as caught:
        decode_image(data, where="it")
    assert not isinstance(caught.value, BrokenImageError)


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


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG", "AVIF", "TIFF"])
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
    png = bytearray(encode(photo(2, 2), "PNG"))
    png[16:24] = struct.pack(">LL", side, side)
    png[29:33] = struct.pack(">L", zlib.crc32(png[12:29]))
    gif = bytearray(encode(photo(2, 2), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    tiff = bytearray(encode(photo(2, 2), "TIFF"))
    for tag in (256, 257):
        place = tiff.index(struct.pack("<HHL", tag, 4, 1)) + 8
        tiff[place : place + 4] = struct.pack("<L", side)
    for bomb in (bmp, jpeg, png, gif, tiff):
        with pytest.raises(
            BrokenImageError, match=f"{side} x {side} .* bomb.*raise data.max_pixels"
        ):
            decode_image(bytes(bomb), where="big.bmp")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG", "AVIF", "TIFF", "CMYK"])
def test_the_bound_can_be_chosen(kind):
    image = photo(10, 12)
    cmyk = kind == "CMYK"
    data = encode_cmyk(PIL.Image.fromarray(image), "JPEG") if cmyk else encode(image, kind)
    assert decode_image(data, where="it", max_pixels=120).shape == (10, 12, 3)
    with pytest.raises(BrokenImageError, match="12 x 10 pixels are more than 119, as in a dec"):
        decode_image(data, where="it", max_pixels=119)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as the module has it
def test_a_bound_above_pillows_own(monkeypatch):
    """Pillow has one for the whole process, which is raised where a config asks for more."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)
    for kind in ("WEBP", "TIFF", "GIF", "AVIF"):
        assert decode_image(encode(photo(10, 12), kind), where="it", max_pixels=200).size == 360
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


def large_jpeg(height, width):
    """All grey: each block of 8 x 8 pixels is the same six bits, of which four fill three bytes."""
    assert height % 8 == width % 8 == height * width // 64 % 4 == 0
    file = io.BytesIO()
    PIL.Image.new("L", (8, 8), 128).save(file, "JPEG")
    head = bytearray(file.getvalue())
    start = head.index(b"\xff\xc0") + 5
    head[start : start + 4] = struct.pack(">HH", height, width)
    return (
        bytes(head[: head.index(b"\xff\xda") + 10])
        + b"\x28\xa2\x8a" * (height * width // 256)
        + b"\xff\xd9"
    )


def test_a_photo_of_300_megapixels_takes_little_memory():
    data = large_jpeg(17_312, 17_320)
    tracemalloc.start()
    image = decode_image(data, where="it", longest=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (2164, 2165, 3)
    assert (image == 128).all()
    assert peak < 30e6


def test_photos_are_scaled_for_evaluation_only_where_they_are_huge():
    data = DataConfig()
    assert whole_image(large_jpeg(9_984, 10_000), data, where="it").shape == (4992, 5000, 3)
    image = cv2.GaussianBlur(photo(200, 301), (0, 0), 2)
    encoded = encode(image, "JPEG", quality=95)
    whole = decode_image(encoded, where="it")
    for most, scale in ((60_200, 1), (60_199, 2), (15_000, 4), (3_763, 4), (100, 8)):
        small = decode_image(encoded, where="it", scale_above=most)
        assert small.shape == (-(-200 // scale), -(-301 // scale), 3)
    np.testing.assert_array_equal(decode_image(encoded, where="it", scale_above=60_200), whole)
    small = DataConfig(max_pixels=60_199)
    with pytest.raises(BrokenImageError, match="more than 60,199"):
        whole_image(encoded, small, where="it")
    with pytest.raises(BrokenImageError, match="more than 60,199"):
        training_image(encoded, small, where="it")


def test_cmyk_is_decoded_at_a_fraction_of_its_size():
    data = encode_cmyk(PIL.Image.new("RGB", (160, 80), (20, 90, 200)), "JPEG", quality=95)
    assert decode_image(data, where="it", longest=20).shape == (10, 20, 3)
    whole = decode_image(data, where="it")
    assert (
        np.abs(whole[0, 0] - decode_image(data, where="it", longest=20)[0, 0].astype(int)).max() < 4
    )


def on_canvas(data, *, size, at):
    """A GIF whose frame lies within a larger canvas."""
    gif = bytearray(data)
    gif[6:10] = struct.pack("<HH", *size)
    frame = gif.index(b"\x2c", 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 128 else 0))
    gif[frame + 1 : frame + 5] = struct.pack("<HH", *at)
    return bytes(gif)


@pytest.mark.parametrize("clear", [False, True])
def test_a_gif_lies_on_its_canvas(clear):
    """Round its first frame the background shows, whatever colour is number 0."""
    image = PIL.Image.new("RGBA", (5, 3), (200, 30, 90, 255))
    if clear:
        image.putpixel((1, 1), (0, 0, 0, 0))
    file = io.BytesIO()
    image.save(file, "GIF")
    data = on_canvas(file.getvalue(), size=(11, 9), at=(4, 2))
    expected = np.full((9, 11, 3), (10, 100, 255))
    expected[2:5, 4:9] = (200, 30, 90)
    if clear:
        expected[3, 5] = (10, 100, 255)
    np.testing.assert_array_equal(decode_image(data, where="it", background="#0a64ff"), expected)


def test_a_gif_frame_larger_than_its_canvas():
    data = on_canvas(encode(photo(5, 7), "GIF"), size=(3, 3), at=(0, 0))
    assert decode_image(data, where="it").shape == (5, 7, 3)


# --- TIFF: written by tifffile -------------------------------------------------------------------


def tiff(image, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 5},
    ],
)
def test_tiff_of_8_and_16_bits(order, options):
    image = np.random.default_rng(0).integers(2**16, size=(37, 52, 3), dtype=np.uint16)
    high = (image >> 8).astype(np.uint8)
    for pixels in (image, high):
        data = tiff(pixels, photometric="rgb", byteorder=order, **options)
        np.testing.assert_array_equal(decode_image(data, where="it"), high)
        data = tiff(pixels[:, :, 0], photometric="minisblack", byteorder=order, **options)
        np.testing.assert_array_equal(decode_image(data, where="it")[:, :, 1], high[:, :, 0])
        if order == "<" or pixels is high:
            data = tiff(pixels[:, :, 0], photometric="miniswhite", byteorder=order, **options)
            np.testing.assert_array_equal(
                decode_image(data, where="it")[:, :, 2], 255 - high[:, :, 0]
            )
    data = tiff(np.stack([high, 255 - high]), photometric="rgb", byteorder=order, **options)
    np.testing.assert_array_equal(decode_image(data, where="it"), high)  # the first page
    planes = np.moveaxis(high, 2, 0)
    data = tiff(planes, photometric="rgb", planarconfig="separate", byteorder=order, **options)
    np.testing.assert_array_equal(decode_image(data, where="it"), high)


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_transparent_tiff(photometric, alpha):
    count = 4 if photometric == "rgb" else 2
    image = np.full((4, 6, count), 128, np.uint8)
    image[:, :3] = 0
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": [alpha]}
    pixels = decode_image(tiff(image, **options), where="it", background="#ffffff")
    assert (pixels[:, :3] == 255).all()
    over = 128 * 128 / 255 if alpha == "unassalpha" else 128
    np.testing.assert_allclose(pixels[:, 3:], over + 127, atol=1)


def test_big_tiff():
    data = tiff(photo(9, 7), photometric="rgb", bigtiff=True)
    np.testing.assert_array_equal(decode_image(data, where="it"), photo(9, 7))


def test_cmyk_tiff():
    cmyk = np.asarray(PIL.Image.fromarray(photo(9, 7)).convert("CMYK"))
    data = tiff(cmyk, photometric="separated")
    np.testing.assert_allclose(decode_image(data, where="it"), photo(9, 7), atol=1)


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        (np.zeros((8, 8), np.float32), {}, "grey of 32 bits"),
        (np.zeros((8, 8), np.uint32), {}, "grey of 32 bits"),
        (np.zeros((8, 8), np.int16), {}, "grey of 32 bits"),
        (np.zeros((8, 8, 3), np.float32), {"photometric": "rgb"}, "TIFF that is .* unsupported"),
        (np.zeros((8, 8, 5), np.uint8), {"planarconfig": "contig"}, "TIFF that is .* unsupported"),
        (
            np.zeros((3, 8, 8), np.uint16),
            {"photometric": "rgb", "planarconfig": "separate"},
            "16 bits with a separate plane for each colour",
        ),
        (np.zeros((8, 8, 3), np.uint8), {"photometric": "rgb", "subfiletype": 1}, "a preview"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tifffile")
def test_tiff_that_is_not_read(image, options, reason):
    with pytest.raises(BrokenImageError, match=f"^scan.tif: .*{reason}.*convert"):
        decode_image(tiff(image, **{"photometric": "minisblack", **options}), where="scan.tif")


@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")  # as the module has it
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_bytes_give_an_image_or_the_one_error(kind):
    exif = {} if kind in ("GIF", "BMP") else {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}
    data = encode(photo(24, 24), kind, **exif)
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(len(data), size=3):
            damaged[place] = generator.integers(256)
        try:
            image = decode_image(bytes(damaged), where="it", max_pixels=1 << 20)
        except BrokenImageError:
            continue
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)


def test_nothing_on_stderr(capfd):
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
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


@pytest.mark.parametrize("kind", ["DDS", "EPS", "ICO"])
def test_kinds_that_are_not_promised(kind):
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(file, kind)
    with pytest.raises(BrokenImageError, match="not an image of a known kind"):
        decode_image(file.getvalue(), where="it")


def media(*brands):
    body = brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return struct.pack(">L", 8 + len(body)) + b"ftyp" + body + b"\0\0\0\x08mdat"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (media(b"heic", b"mif1", b"heic"), "HEIC"),
        (media(b"mif1", b"mif1", b"heic"), "HEIC"),
        (media(b"mif1", b"miaf"), "HEIF"),
        (media(b"crx ", b"isom"), "camera raw"),
        (b"\xff\x0a\xfa\x1f" + b"\0" * 40, "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + media(b"jxl ", b"jxl "), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + media(b"jp2 ", b"jp2 "), "JPEG 2000"),
        (b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 40, "camera raw"),
        (b"8BPS\0\1" + b"\0" * 40, "Photoshop"),
    ],
)
def test_formats_that_are_not_read_are_named(data, name):
    with pytest.raises(
        BrokenImageError, match=f"^it: .*it is {name}, which is not supported; convert"
    ):
        decode_image(data, where="it")


@pytest.mark.parametrize("data", [b"  \n<!DOCTYPE HTML><title>404</title>", b"<html><p>Log in"])
def test_a_web_page_is_to_be_downloaded_again(data):
    with pytest.raises(BrokenImageError, match="a web page, not an image; download the image ag"):
        decode_image(data, where="it")


def test_a_pointer_of_git_lfs_is_to_be_fetched():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    with pytest.raises(BrokenImageError, match="a Git LFS pointer, not an image; fetch the file"):
        decode_image(pointer, where="it")


def test_an_avif_that_calls_itself_a_heif_is_one():
    data = encode(photo(16, 16), "AVIF")
    size = int.from_bytes(data[:4])
    brands = data[:8] + b"mif1" + data[12:size]
    assert b"avif" in brands[16:]
    assert decode_image(brands + data[size:], where="it").shape == (16, 16, 3)


def test_suffixes_of_what_is_read_and_of_what_is_not():
    assert all(map(is_image_name, ("a.JPG", "a.tif", "a.avif", "a.b.webp")))
    assert not any(map(is_image_name, ("a.heic", "a.txt", "jpg", ".jpg.swp")))
    assert not IMAGE_SUFFIXES & UNREADABLE_FORMATS.keys()
    assert UNREADABLE_FORMATS[".heic"] == "HEIC"


def test_the_header_of_every_format():
    for kind in ("PNG", "BMP", "WEBP", "GIF", "JPEG", "AVIF", "TIFF"):
        assert image_header(encode(photo(5, 7), kind)) == (kind, 5, 7)


# --- One channel and four -------------------------------------------------------------------------

EXACT = ["PNG", "BMP", "GIF", "TIFF", "AVIF", "WEBP"]


@pytest.mark.parametrize("kind", [*EXACT, "JPEG"])
def test_one_channel_is_pillows_luma_of_the_colours(kind):
    for data in (encode(photo(31, 40), kind), encode(photo(31, 40)[..., 0], kind)):
        image = decode_image(data, where="it", channels=1)
        rgb = PIL.Image.fromarray(decode_image(data, where="it"))
        np.testing.assert_array_equal(image[..., 0], rgb.convert("L"))
        theirs = PIL.Image.open(io.BytesIO(data)).convert("L")
        assert np.abs(image[..., 0] - np.asarray(theirs, int)).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", [*EXACT, "JPEG"])
def test_a_fourth_channel_of_opaque_images_is_255(kind):
    for data in (encode(photo(9, 7), kind), encode(photo(9, 7)[..., 0], kind)):
        image = decode_image(data, where="it", channels=4)
        np.testing.assert_array_equal(image[..., :3], decode_image(data, where="it"))
        assert (image[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA"), ("GIF", "RGBA")],
)
def test_alpha_is_kept_in_four_channels_and_blended_in_one(kind, mode):
    data = transparent(kind, mode)
    image = decode_image(data, where="it", channels=4)
    np.testing.assert_array_equal(image, PIL.Image.open(io.BytesIO(data)).convert("RGBA"))
    assert (image[:, :4, 3] == 255).all()
    assert (image[:, 4:, 3] == 0).all()
    grey = decode_image(data, where="it", channels=1, background="#0a64ff")
    luma = PIL.Image.new("RGB", (1, 1), "#0a64ff").convert("L").getpixel((0, 0))
    assert np.unique(grey[:, 4:]).tolist() == [luma]
    assert not grey[:, :4].any()


def test_half_transparent_pixels_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(256, size=(5, 4, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encode(pixels, "PNG"), where="", channels=4), pixels)
    data = tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode_image(data, where="it", channels=4), pixels)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_transparent_colour_and_what_a_frame_leaves_out(channels):
    image = PIL.Image.fromarray(np.full((4, 6, 3), (10, 20, 30), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=(10, 20, 30))
    for data in (file.getvalue(), on_canvas(encode(photo(1, 1), "GIF"), size=(8, 8), at=(7, 7))):
        pixels = decode_image(data, where="it", channels=channels, background="#ffffff")
        if channels == 4:
            assert (pixels[:4, :6, 3] == 0).all()
        else:
            assert (pixels[:4, :6] == 255).all()


def test_cmyk_has_one_channel_or_four_like_rgb():
    data = encode_cmyk(PIL.Image.fromarray(photo(16, 16)), "JPEG", quality=100)
    rgb = decode_image(data, where="it")
    np.testing.assert_array_equal(decode_image(data, where="it", channels=4)[..., :3], rgb)
    grey = decode_image(data, where="it", channels=1)[..., 0]
    np.testing.assert_array_equal(grey, PIL.Image.fromarray(rgb).convert("L"))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("stored", [1, 3, 4])
def test_a_png_of_16_bits_has_a_range(stored, channels):
    samples = np.random.default_rng(0).integers(2**16, size=(9, 7, stored), dtype=np.uint16)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[stored]
    data = cv2.imencode(".png", samples[..., order])[1].tobytes()
    levels = np.clip(np.round((samples - 1000.0) * 255 / 49_000), 0, 255).astype(np.uint8)
    if stored == 4:
        levels[..., 3] = samples[..., 3] >> 8
    shallow = encode(levels[..., 0] if stored == 1 else levels, "PNG")
    actual = decode_image(data, where="it", channels=channels, value_range=(1000.0, 50_000.0))
    np.testing.assert_array_equal(actual, decode_image(shallow, where="it", channels=channels))


@pytest.mark.parametrize("kind", [*EXACT, "JPEG"])
@pytest.mark.parametrize("channels", [2, 6])
def test_formats_of_colours_are_refused_for_other_channels(kind, channels):
    reason = (
        f"{kind} has .* data.channels is {channels}|3 channels, but data.channels is {channels}"
    )
    with pytest.raises(BrokenImageError, match=f"^it: .*({reason})"):
        decode_image(encode(photo(9, 7), kind), where="it", channels=channels)


def test_grey_without_a_white_names_the_range():
    for dtype in (np.float32, np.int32):
        data = tiff(np.zeros((8, 8), dtype), photometric="minisblack")
        with pytest.raises(BrokenImageError, match=r"train with data\.value_range"):
            decode_image(data, where="it")


def test_the_fields_of_the_data_reach_the_decoder():
    data = DataConfig(channels=1, value_range=(0.0, 100.0), canvas_size=8)
    image = np.random.default_rng(0).uniform(0, 100, (8, 8)).astype(np.float32)
    encoded = tiff(image, photometric="minisblack")
    expected = np.round(image.astype(float) * 255 / 100)[..., None]
    for read in (training_image, whole_image):
        np.testing.assert_array_equal(read(encoded, data, where="it"), expected)
