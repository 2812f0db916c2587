"""The size of a network's images: one number for squares, or height and width, in pixels."""

type ImageSize = int | tuple[int, int]


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Both sides of an image size."""
    return size if isinstance(size, tuple) else (size, size)


def longer_side(size: ImageSize) -> int:
    """The larger of height and width."""
    return max(height_and_width(size))


def with_shorter_side(size: ImageSize, shorter: int) -> ImageSize:
    """A size of the same shape, rounded to whole pixels, whose shorter side is given."""
    if not isinstance(size, tuple):
        return shorter
    height, width = size
    scale = shorter / min(size)
    return (round(height * scale), round(width * scale))


def describe_size(size: ImageSize) -> str:
    """The size for the user: "224", or "128 x 512", height first."""
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)
