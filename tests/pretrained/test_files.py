"""safetensors and HDF5; what is no weights file at all; damage of every kind to every format."""

import json
import os
import random
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch_files as tf
from safetensors.numpy import save_file

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained import hdf5, hdf5_process
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.limits import RefusedError

MATRIX = np.random.default_rng(0).standard_normal((6, 4)).astype("f4")


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(kind: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


def test_reads_safetensors(tmp_path: Path) -> None:
    arrays = {
        "single": MATRIX,
        "bfloat16": MATRIX.astype(ml_dtypes.bfloat16),
        "half": MATRIX.astype("f2"),
        "double": MATRIX.astype("f8"),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "none": np.empty((0, 3), "f4"),
    }
    save_file(arrays, tmp_path / "w.pth", {"made by": "a test"})
    read = read_weights(str(tmp_path / "w.pth"))
    assert read.path == tmp_path / "w.pth"
    assert read.metadata == {"made by": "a test"}
    assert read.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        kept = array if name in ("count", "flags") else array.astype("f4")
        np.testing.assert_array_equal(read.tensors[name], kept, strict=True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (safetensors_bytes({"a": entry("F32", [4], 0, 16)}, bytes(15)), "damaged or cut off"),
        (safetensors_bytes({"a": entry("F32", [4], 0, 16)}, bytes(17)), "damaged or cut off"),
        (safetensors_bytes({"a": entry("F32", [5], 0, 16)}, bytes(16)), "damaged or cut off"),
        (safetensors_bytes({"a": entry("F32", [2**62, 4], 0, 16)}, bytes(16)), "damaged"),
        (
            safetensors_bytes(
                {"a": entry("F32", [4], 0, 16), "b": entry("F32", [2], 8, 16)}, bytes(16)
            ),
            "damaged or cut off",
        ),
        (safetensors_bytes({"a": entry("F32", [4], 16, 0)}, bytes(16)), "damaged or cut off"),
        (safetensors_bytes({"a": entry("F32", [0, 2**62], 0, 0)}, b""), "impossible shape"),
        (safetensors_bytes({"a": entry("F8_E4M3", [4], 0, 4)}, bytes(4)), "of type F8_E4M3"),
        (safetensors_bytes(b"{" + b"[" * 100_000, b""), "damaged or cut off"),
        (
            safetensors_bytes({"x\n\x1b[31m": entry("F8_E4M3", [4], 0, 4)}, bytes(4)),
            r"x\\n\\x1b\[31m is of type",
        ),
        (safetensors_bytes({}, b""), "no tensors"),
        ((2**62).to_bytes(8, "little") + b"{}", "4611686018427387904 bytes.*download it again"),
        ((2**20).to_bytes(8, "little") + b"{}", "is cut off"),
    ],
)
def test_refuses_safetensors_that_lie(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(WeightsError, match=f"w: .*{says}"):
        read_weights(tmp_path / "w")


def test_reads_hdf5_as_keras_writes_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.bin", "w") as file:
        file.attrs["layer_names"] = ["stem", "top"]
        stem = file.create_group("stem")
        stem["stem/kernel:0"] = MATRIX.astype("f2")
        stem["stem/count"] = np.array(7)
        file.create_group("top").create_dataset("größe", data=MATRIX, chunks=(4, 4))
    read = read_weights(tmp_path / "w.bin")
    assert read.tensors.keys() == {"stem/stem/kernel:0", "stem/stem/count", "top/größe"}
    np.testing.assert_array_equal(
        read.tensors["stem/stem/kernel:0"], MATRIX.astype("f2").astype("f4"), strict=True
    )
    np.testing.assert_array_equal(read.tensors["top/größe"], MATRIX, strict=True)
    assert read.tensors["stem/stem/count"].dtype == np.int64
    assert read.metadata == {}


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        (ml_dtypes.bfloat16, "bfloat16", None),
        (ml_dtypes.bfloat16, None, None),
        (">f2", None, None),
        ("<f8", None, None),
        (ml_dtypes.bfloat16, "float8_e5m2", "type float8_e5m2; save the model with float32"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn", "type float8_e4m3fn; save the model with"),
        (ml_dtypes.float8_e4m3fn, None, r"type \|V1; save the model with float32 weights"),
    ],
)
def test_every_type_of_keras_is_read_or_named(
    tmp_path: Path, kind: Any, said: str | None, expected: str | None
) -> None:
    numbers = np.arange(-6, 6, dtype="f4").reshape(3, 4).astype(kind)
    with h5py.File(tmp_path / "w", "w") as file:
        file["a"] = numbers
        file["b"] = numbers[0, 0]
        if said:
            file["a"].attrs["dtype"] = file["b"].attrs["dtype"] = said
    if expected is not None:
        with pytest.raises(WeightsError, match=f"data set a has the unsupported {expected}"):
            read_weights(tmp_path / "w")
        return
    read = read_weights(tmp_path / "w")
    np.testing.assert_array_equal(read.tensors["a"], numbers.astype("f4"), strict=True)
    np.testing.assert_array_equal(read.tensors["b"], np.array(-6, "f4"), strict=True)


def test_reads_shards_of_any_format(tmp_path: Path) -> None:
    save_file({"conv_stem.weight": MATRIX}, tmp_path / "one.safetensors")
    tf.write_zip(tmp_path / "two.bin", {"bn1.weight": tf.whole("0", -MATRIX)})
    places = {"conv_stem.weight": "one.safetensors", "bn1.weight": "two.bin"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 192}, "weight_map": places}))
    read = read_weights(index)
    assert (read.path, read.notes) == (index, ("read from 2 files",))
    np.testing.assert_array_equal(read.tensors["conv_stem.weight"], MATRIX)
    np.testing.assert_array_equal(read.tensors["bn1.weight"], -MATRIX)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"a": "gone.h5"}, r"lists 1 files of weights, but 1 of them is not .* such as gone\.h5"),
        ({"a": ["gone.h5", "two.h5"]}, "2 of them are not beside it"),
        ({"a": "../one"}, r"lists \.\./one, which is not a file beside it"),
        ({"a": "/etc/passwd"}, "lists /etc/passwd, which is not a file beside it"),
        ({"a": ".."}, "not beside it, such as"),
        ({"a": [3]}, "lists 3, which is not a file beside it"),
        ({"a": {"one": 1}}, r"lists \{'one': 1\}, which is not a file beside it"),
        ({"a": [["one"]]}, r"lists \['one'\], which is not a file beside it"),
        ({"a": ""}, "lists , which is not a file beside it"),
        ({"a": "one\0"}, r"not beside it, such as one\\x00"),
        ({"a": "w"}, "is another list of files, named in"),
        ({"a": "one", "b": "copy"}, "copy: has a, which another file of w has too"),
        ({}, "contains no tensors"),
    ],
)
def test_refuses_lists_of_shards_that_lie(tmp_path: Path, places: Any, says: str) -> None:
    for name in ("one", "copy"):
        save_file({"a": MATRIX}, tmp_path / name)
    (tmp_path / "w").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match=says):
        read_weights(tmp_path / "w")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", shape=(4,))
    file.create_virtual_dataset("a", layout)


def one_by_many_names(file: h5py.File) -> None:
    file["a"] = np.zeros(2**18, "f4")
    for number in range(99):
        file[str(number)] = file["a"]


def circle(file: h5py.File) -> None:
    file.create_group("g")["h"] = file["/"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.create_dataset("a", (2**40,), "f4"), "declares 4398046511104 bytes"),
        (lambda file: file.create_dataset("a", (2**40,), "f4", chunks=(64,)), "declares"),
        (one_by_many_names, "declares 104857600 bytes of tensors"),
        (
            lambda file: file.create_dataset("a", (4,), "u1", external=[("secret", 0, 4)]),
            "is stored in other files",
        ),
        (virtual, "is stored in other files"),
        (lambda file: file.update(a=h5py.ExternalLink("other.h5", "/a")), "a is a link"),
        (lambda file: file.update(a=h5py.SoftLink("/b")), "a is a link"),
        (circle, "g/h is reached twice"),
        (
            lambda file: file.create_dataset("a", data=file.ref, dtype=h5py.ref_dtype),
            "has the unsupported type",
        ),
        (lambda file: file.create_dataset("a", data="text"), "has the unsupported type"),
        (lambda file: file.create_dataset("a", data=MATRIX, compression="lzf"), "is compressed"),
        (lambda file: file.create_dataset("a", data=h5py.Empty("f4")), "no usable shape"),
        (
            lambda file: file.update({"x\n\x1b[31m": "text"}),
            r"x\\n\\x1b\[31m has the unsupported type",
        ),
        (lambda file: None, "contains no tensors"),
    ],
)
def test_refuses_hdf5_that_lies_or_leads_out(
    tmp_path: Path, make: Callable[[h5py.File], Any], says: str
) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    with h5py.File(tmp_path / "w", "w") as file:
        make(file)
    with pytest.raises(WeightsError, match=f"w: .*{says}"):
        read_weights(tmp_path / "w")


def test_a_chunk_that_inflates_takes_no_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w", "w") as file:
        small = file.create_dataset("a", (256,), "f4", chunks=(256,), compression="gzip")
        packer = zlib.compressobj(9)
        parts = [packer.compress(bytes(2**20)) for _ in range(400)] + [packer.flush()]
        small.id.write_direct_chunk((0,), b"".join(parts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RefusedError, match=r"data set a is compressed.*h5repack"):
        hdf5_process.read(tmp_path / "w")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # kB


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.abort()", r"w: the HDF5 file is damaged or cut off \(libhdf5 ended by SIGABRT\)"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "libhdf5 computes on it without end"),
        ("pass", "its reader ended early"),
        ("send(b'{}')", "its reader ended early"),
        ("send(b'[[')", "its reader ended early"),
        ("""send(b'{"arrays": [["a", "|O", [1]]]}')""", "its reader ended early"),
        ("""send(b'{"arrays": [["a", "<f4", [3]]]}')""", "its reader ended early"),
        ("""send(b'{"arrays": [["a", "<f4", [-1]]]}')""", "its reader ended early"),
        (
            """send(b'{"arrays": [["a", "<f4", [99999999999]]]}')""",
            "it declares 399999999996 bytes",
        ),
        ("sys.stdout.buffer.write(b'\\xff' * 8)", "its reader ended early"),
    ],
)
def test_a_reader_of_hdf5_that_crashes_or_lies_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    """The process is as if a file had taken it over."""
    (tmp_path / "evil.py").write_text(
        "import os, signal, sys\n"
        "def send(text):\n"
        "    sys.stdout.buffer.write(len(text).to_bytes(8, 'little') + text)\n" + code
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hdf5, "PROCESS", "evil")
    with pytest.raises(WeightsError, match=says):
        read_weights(write_hdf5(tmp_path / "w"))


def test_the_reader_of_hdf5_is_limited_and_its_own_errors_are_bugs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hdf5(tmp_path / "w")
    code = f"""
import resource, sys
from pathlib import Path
from jaxcls.pretrained import hdf5_process
hdf5_process.main(Path({str(path)!r}))
print(*(resource.getrlimit(what)[0] for what in (resource.RLIMIT_CPU, resource.RLIMIT_AS)),
      file=sys.stderr)
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert told.stderr.split() == [b"20", str((4 << 30) + (64 << 20)).encode()]
    monkeypatch.setattr(hdf5, "PROCESS", "no_such_module")
    with pytest.raises(RuntimeError, match=r"status 1: .*No module named no_such_module"):
        read_weights(path)


def test_hdf5_is_read_with_what_this_process_can_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a folder that was added here is missed, nor the current one is imported from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h5py.py").write_text("raise SystemExit(7)")
    assert read_weights(write_hdf5(tmp_path / "w")).tensors


def test_only_hdf5_needs_h5py() -> None:
    code = "import sys, jaxcls.pretrained.files; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        (b'{"error": "not found"}', "is a text file"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "is a text file"),
        (bytes(600), "begins with 00 00 00"),
        (bytes(257) + b"ustar" + bytes(300), "is a tar archive"),
        (b"\x80\x02K\x01.", "not one of PyTorch's"),
    ],
)
def test_says_what_is_no_weights_file(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=f"w.safetensors: .*{says}"):
        read_weights(tmp_path / "w.safetensors")


def test_says_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").touch()
    with pytest.raises(WeightsError, match=r"wieghts.h5: no such file.*weights.h5"):
        read_weights(tmp_path / "wieghts.h5")
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "nowhere" / "weights.h5")
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)
    for name in ("x" * 5000, "w/" * 5000):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_weights(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="not a regular file"):
        read_weights(tmp_path / "pipe")


def write_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "3"
        file.attrs["layer_names"] = ["a", "b"]
        for name in "ab":
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel".encode()]
            file[f"{name}/{name}/kernel"] = MATRIX
    return path


def write_safetensors(path: Path) -> Path:
    save_file({"a": MATRIX, "b": MATRIX.astype("f2")}, path, {"a": "b"})
    return path


def read_hdf5_here(path: Path, record: str | None = None) -> dict[str, np.ndarray]:
    try:
        return hdf5_process.read(path, record)
    except hdf5_process.DAMAGED as error:
        raise WeightsError(f"{path}: {error}") from None


def torch_content() -> dict[str, Any]:
    return {"state_dict": {"module.a": tf.whole("0", MATRIX), "module.b": tf.whole("1", MATRIX)}}


WRITERS: dict[str, Callable[[Path], Path]] = {
    "hdf5": write_hdf5,
    "safetensors": write_safetensors,
    "zip": lambda path: tf.write_zip(path, torch_content()),
    "stream": lambda path: tf.write_stream(path, torch_content()),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_refuses_half_a_file(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / "w")
    assert read_weights(path).tensors
    data = path.read_bytes()
    for part in (0.02, 0.25, 0.5, 0.75, 0.99):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(WeightsError, match="w: "):
            read_weights(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_damage_is_refused_or_harmless(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS[kind](tmp_path / "w")
    data, draw, outcomes = path.read_bytes(), random.Random(0), {"read": 0, "refused": 0}
    if kind == "hdf5":  # without a process for each; tests/fuzz has many more mutations
        monkeypatch.setattr(hdf5, "read", read_hdf5_here)
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(len(data))
            damaged[place : place + 8] = draw.choice(
                [
                    bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 : place + 8],
                    bytes([draw.randrange(256)]) + data[place + 1 : place + 8],
                    b"\xff" * 4 + data[place + 4 : place + 8],
                    draw.randbytes(8),
                ]
            )
        path.write_bytes(damaged[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            read_weights(path)
            outcomes["read"] += 1
        except WeightsError as error:
            assert str(path) in str(error)  # noqa: PT017
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # kB
