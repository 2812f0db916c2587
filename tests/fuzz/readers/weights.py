"""Readers of weights, and good files of them."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import torch_files as tf
from mutations import Damage, damage_bytes, damage_json, mostly

from readers.reader import MATRIX, Reader, assert_printable, written


def _weights(samples: Sequence[bytes], damage: Damage) -> Reader:
    from jaxcls.pretrained.files import read_weights

    def read(folder: Path) -> None:
        for name, array in read_weights(folder / "w").tensors.items():
            assert isinstance(name, str)
            assert isinstance(array, np.ndarray)

    return Reader(samples=[{"w": sample} for sample in samples], damage={"w": damage}, read=read)


def pth() -> Reader:
    """What `torch.save` writes: a zip archive."""
    contents = [_state_dict(), _checkpoint()]
    files = [written(tf.write_zip, content) for content in contents]
    pickled, storages = tf.pickled(_checkpoint(), protocol=5)
    files.append(written(tf.write_records, pickled, storages, order="big"))
    return _weights(files, mostly(mutations.damage_record))


def pth_legacy() -> Reader:
    """What `torch.save` wrote before version 1.6: pickles one after another."""
    return _weights(
        [written(tf.write_stream, content) for content in (_state_dict(), _checkpoint())],
        damage_bytes,
    )


def hdf5() -> Reader:
    """Files of Keras, older and newer, and of other libraries."""
    kinds = [_hdf5(), _hdf5(libver="latest"), _hdf5(chunks=(2, 2)), _hdf5(track_order=True)]
    return _in_hdf5(kinds, damage_bytes, record=None)


def keras() -> Reader:
    """Keras archives, with an HDF5 file inside."""

    def archive(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("metadata.json", '{"keras_version": "3.0"}')
            file.writestr("config.json", '{"module": "keras"}')
            file.writestr("model.weights.h5", _hdf5())

    return _in_hdf5([written(archive)], mostly(mutations.damage_record), "model.weights.h5")


def _in_hdf5(samples: Sequence[bytes], damage: Damage, record: str | None) -> Reader:
    from jaxcls.pretrained.hdf5_process import DAMAGED, read
    from jaxcls.pretrained.limits import RefusedError

    return Reader(
        samples=[{"w": sample} for sample in samples],
        damage={"w": damage},
        read=lambda folder: read(folder / "w", record),
        errors=(RefusedError, *DAMAGED),
        seconds=3,
        in_own_process=True,
    )


def safetensors() -> Reader:
    from safetensors.numpy import save

    arrays = {
        "stem.weight": MATRIX,
        "half": MATRIX.astype("f2"),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "none": np.empty((0, 3), "f4"),
    }
    return _weights(
        [save(arrays, {"format": "pt"}), save({"module.a": MATRIX})],
        mostly(mutations.damage_header),
    )


def shards() -> Reader:
    """A JSON list of weights files."""
    from safetensors.numpy import save

    from jaxcls.pretrained.files import read_weights

    places = {"a": "one.safetensors", "b": "two.safetensors", "c": ["one.safetensors"]}
    index = {"metadata": {"total_size": 48}, "weight_map": places}
    files = {
        "index.json": json.dumps(index).encode(),
        "one.safetensors": save({"a": MATRIX}),
        "two.safetensors": save({"b": MATRIX}),
    }
    return Reader(
        samples=[files],
        damage={"index.json": damage_json},
        read=lambda folder: read_weights(folder / "index.json"),
    )


def jaxcls_file() -> Reader:
    """Weights of jaxcls, with the network and its preprocessing as metadata."""
    from jaxcls.inference.open_weights import _config_of
    from jaxcls.models.weights_info import WeightsInfo
    from jaxcls.pretrained.files import read_weights
    from jaxcls.pretrained.jaxcls_file import stored_info, write_weights

    def info(**changes: Any) -> WeightsInfo:
        return WeightsInfo(
            model="efficientnetv2_b0", mean=(0.1, 0.2, 0.3), std=(1, 1, 1), image_size=64, **changes
        )

    def read(folder: Path) -> None:
        if found := stored_info(read_weights(folder / "w")):
            assert_printable(*(found.class_names or ()))
            _config_of("w", found)

    variables = {"params": {"classifier": {"bias": MATRIX[0], "kernel": MATRIX}}}
    infos = [info(class_names=("cat", "dög")), info(padding="symmetric", options={"width": 3})]
    files = [written(write_weights, variables, each) for each in infos]
    return Reader(
        samples=[{"w": file} for file in files],
        damage={"w": mostly(mutations.damage_metadata, mutations.damage_header)},
        read=read,
    )


def class_names() -> Reader:
    """A user's file of class names, as text and as JSON."""
    from jaxcls.pretrained.class_names import read_class_names

    samples = {
        "names.txt": ["cat\ndog\nö\n", "n01440764\ttench\nn01443537\tgoldfish\n"],
        "names.json": [
            '["cat", "dog"]',
            '{"0": "cat", "1": "dog"}',
            '{"cat": 0, "dog": 1}',
            '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
            '{"id2label": {"0": "cat", "1": "dog"}}',
        ],
    }

    def read(folder: Path) -> None:
        (path,) = folder.iterdir()
        assert_printable(*read_class_names(path))

    return Reader(
        samples=[{name: text.encode()} for name, texts in samples.items() for text in texts],
        damage={"names.txt": damage_bytes, "names.json": damage_json},
        read=read,
    )


def _state_dict() -> dict[str, Any]:
    bits = (MATRIX.view("u4") >> 16).astype("u2")
    shared = tf.Stored("m", "float32", MATRIX.reshape(-1))
    return {"a": tf.tensor(shared, (2, 2), (1, 2), 1), "b": tf.whole("h", bits, "bfloat16")}


def _checkpoint() -> dict[str, Any]:
    parameter = tf.Called("torch._utils", "_rebuild_parameter", tf.whole("p", MATRIX), True, {})
    return {
        "epoch": 3,
        "args": {"lr": 0.1, "names": ("x", None, True)},
        "state_dict": {"module.a": parameter},
        "model_ema": {"module.a": tf.whole("1", MATRIX)},
    }


def _hdf5(*, chunks: tuple[int, int] | None = None, **options: Any) -> bytes:
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w", **options) as file:
        file.attrs["layer_names"] = ["stem", "top"]
        file.create_dataset("stem/kernel:0", data=MATRIX, chunks=chunks)
        half = file.create_dataset("top", data=np.array([[b"12", b"34"]], "V2"))
        half.attrs["dtype"] = "bfloat16"
    return content.getvalue()


READERS: dict[str, Callable[[], Reader]] = {
    "pth": pth,
    "pth-legacy": pth_legacy,
    "hdf5": hdf5,
    "keras": keras,
    "safetensors": safetensors,
    "shards": shards,
    "jaxcls": jaxcls_file,
    "class-names": class_names,
}
