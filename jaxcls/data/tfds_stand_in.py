"""Replaces the few TensorFlow functions that TFDS needs to prepare most sets of images.

TFDS opens files and archives with `tf.io.gfile`, and encodes pixels with `tf.image`. Pillow has the
same codecs as TensorFlow, used here with the same settings.
"""

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from etils import epath
from PIL import Image
from tensorflow_datasets.core.utils import lazy_imports_utils

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Gives TFDS, and no other module, the functions below in place of TensorFlow.

    If TensorFlow is installed, TFDS uses it. Any other part of TensorFlow raises an ImportError
    that names it.
    """
    if _is_tensorflow_there():
        yield
        return
    lazy: Any = lazy_imports_utils.tensorflow
    lazy.__dict__["_module"] = _TENSORFLOW  # setattr would set it on the wrapped module
    try:
        yield
    finally:
        del lazy.__dict__["_module"]


def _is_tensorflow_there() -> bool:
    # If it is in sys.modules, TFDS uses it, for example for its types.
    return "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is not None


# --- tf.io.gfile ---------------------------------------------------------------------------------


def _open(path: epath.PathLike, mode: str = "r") -> IO[Any]:
    return epath.Path(path).open(mode)


def _listdir(path: epath.PathLike) -> list[str]:
    """Returns sorted names, because some sets derive their splits from the order."""
    return sorted(child.name for child in epath.Path(path).iterdir())


def _walk(top: epath.PathLike) -> Iterator[tuple[str, list[str], list[str]]]:
    names = _listdir(top)
    folders = [name for name in names if (epath.Path(top) / name).is_dir()]
    yield str(top), folders, [name for name in names if name not in set(folders)]
    for folder in folders:
        yield from _walk(epath.Path(top) / folder)


def _glob(pattern: epath.PathLike) -> list[str]:
    path = epath.Path(pattern)
    fixed = next(parent for parent in path.parents if not set("*?[") & set(str(parent)))
    return sorted(map(str, fixed.glob(str(path.relative_to(fixed)))))


def _copy(source: epath.PathLike, target: epath.PathLike, overwrite: bool = False) -> None:
    epath.Path(source).copy(target, overwrite=overwrite)


def _makedirs(path: epath.PathLike) -> None:
    epath.Path(path).mkdir(parents=True, exist_ok=True)


# --- tf.image ------------------------------------------------------------------------------------


class _Tensor:
    """A value with the one method of TensorFlow's tensors that TFDS uses."""

    def __init__(self, value: Any):
        self._value = value

    def numpy(self) -> Any:
        return self._value


def _decode(content: Any, channels: int = 0) -> _Tensor:
    """Returns pixels [height, width, channels]; `channels` 0 keeps the file's. Ignores Exif."""
    with Image.open(io.BytesIO(_value(content))) as image:
        mode = _MODES.get(channels) or (image.mode if image.mode in _MODES.values() else "RGB")
        pixels = np.asarray(image.convert(mode), np.uint8)
    return _Tensor(pixels if pixels.ndim == 3 else pixels[..., None])


def _encode_png(image: Any) -> _Tensor:
    pixels = np.asarray(_value(image))
    if pixels.dtype != np.uint8:
        raise ImportError(f"tensorflow is needed to encode {pixels.dtype} pixels")
    return _save(pixels, "PNG")


def _encode_jpeg(image: Any, format: str = "", quality: int = 95) -> _Tensor:
    return _save(np.asarray(_value(image)), "JPEG", quality=quality, subsampling="4:2:0")


def _save(pixels: np.ndarray, kind: str, **options: Any) -> _Tensor:
    buffer = io.BytesIO()
    single = pixels.shape[-1] == 1
    Image.fromarray(pixels[..., 0] if single else pixels).save(buffer, kind, **options)
    return _Tensor(buffer.getvalue())


def _value(given: Any) -> Any:
    return given.numpy() if isinstance(given, _Tensor) else given


# --- The module ----------------------------------------------------------------------------------


class _Part(types.SimpleNamespace):
    """A module, or a module inside it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"tensorflow is needed for its {name}")


def _as_text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


_CODECS = {
    "decode_image": _decode,
    "decode_jpeg": _decode,
    "decode_png": _decode,
    "encode_jpeg": _encode_jpeg,
    "encode_png": _encode_png,
}
_GFILE = _Part(
    GFile=_open,
    copy=_copy,
    exists=lambda path: epath.Path(path).exists(),
    glob=_glob,
    isdir=lambda path: epath.Path(path).is_dir(),
    listdir=_listdir,
    makedirs=_makedirs,
    walk=_walk,
)
_TENSORFLOW = _Part(
    compat=_Part(as_bytes=_as_bytes, as_str=_as_text, as_str_any=_as_text, as_text=_as_text),
    errors=_Part(NotFoundError=FileNotFoundError, UnimplementedError=NotImplementedError),
    executing_eagerly=lambda: True,
    image=_Part(**_CODECS),
    io=_Part(gfile=_GFILE, **_CODECS),
)
