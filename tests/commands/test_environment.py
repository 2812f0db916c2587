"""Commands where paths, rights, folders, devices and numbers are not what they should be."""

import contextlib
import ctypes
import dataclasses
import errno
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import cv2
import jax
import numpy as np
import pytest
from command_line import Message, Run

from jaxcls.commands.common import validate_data
from jaxcls.config import Config, ConfigError, DataConfig, OptimizerConfig, decode, encode
from jaxcls.data.digits import prepared_digits
from jaxcls.distributed import agree
from jaxcls.distributed.agree import shared_errors
from jaxcls.distributed.mesh import all_devices
from jaxcls.pretrained.resolve import resolve
from jaxcls.runs.directory import RunInfo, prepare_run, record_run
from jaxcls.system import caches, output
from jaxcls.system.caches import make_cache_dir, set_library_caches, usual_cache_home
from jaxcls.system.errors import UserError, mistake_behind
from jaxcls.training.loop import Outcome
from jaxcls.training.optimizers import make_optimizer
from jaxcls.training.schedules import make_plan

# Where each command takes a path; BAD stands for it.
PLACES = [
    "train BAD",
    "train tiny.py --workdir BAD",
    "train tiny.py --model.weights BAD",
    "train tiny.py --data.source folder:BAD",
    "train tiny.py --data.data-dir BAD",
    "sweep BAD",
    "runs BAD",
    "runs --diff BAD BAD",
    "evaluate BAD",
    "evaluate w.safetensors --predictions BAD",
    "predict BAD photo.png",
    "predict w.safetensors BAD",
    "export BAD -o new",
    "export run -o BAD",
    "convert BAD -o new.safetensors",
    "convert w.safetensors -o BAD.safetensors",
    "prepare BAD",
    "prepare folder:BAD",
    "prepare digits --data-dir BAD",
    "data BAD",
    "data tiny.py --data.source folder:BAD",
    "data tiny.py --data.source tfds:mnist --data.data-dir BAD",
    "data tiny.py --split BAD",
    "show schedule BAD -o new.png",
    "show schedule tiny.py -o BAD.png",
    "show data BAD -o new.png",
    "show data tiny.py -o BAD.png",
    "show augment BAD -o new.png",
    "show run BAD -o new.png",
    "show run run run -o BAD.png",
    "benchmark BAD",
    "compile BAD",
]
LONG = "n" * 300  # a name has at most 255 bytes
DEEP = "/".join(["a" * 99] * 50)  # and a path 4096


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """Warnings that are logged once per process are logged once per test."""
    output.warn_once.cache_clear()


@pytest.fixture
def things(run: Run) -> None:
    """A photo, a file that is no weights, and a run that has just begun, beside tiny.py."""
    from jaxcls.config import load_config

    cv2.imwrite("photo.png", np.zeros((8, 8, 3), np.uint8))
    Path("w.safetensors").write_bytes(b"no weights, but longer than eight bytes")
    info = RunInfo(config=load_config("tiny.py"), class_names=("a", "b"))
    prepare_run(Path("run"), info, allow_changes=False)
    record_run(Path("run"), info)
    os.symlink("loop", "loop")


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Takes from root the right to read and write whatever it likes, for this thread."""
    if os.geteuid():
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root's rights are taken as Linux does it")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then of further rights
    assert libc.capget(header, sets) == 0
    before, everything = sets[0], 0b111  # chown, override, read and search
    sets[0] = before & ~everything
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


def close(folder: Path, *, mode: int = 0o555) -> None:
    """Removes the right to write from everything in a folder."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o444)


# Paths


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("bad", [LONG, DEEP, "a\0b", "", "loop/x", "tiny.py/x"])
def test_a_path_that_cannot_be_is_one_message(message: Message, bad: str) -> None:
    for place in PLACES:
        arguments = [word.replace("BAD", bad) for word in place.split()]
        if bad or "" in arguments:
            text = message(*arguments)
            assert text.startswith("jaxcls: "), place
            assert len(text) < 20_000, place
    assert not Path("new").exists()
    assert not Path("new.png").exists()


@pytest.mark.usefixtures("things")
def test_a_path_without_rights_is_one_message(message: Message) -> None:
    Path("closed").mkdir()
    for name in ("tiny.py", "photo.png", "w.safetensors"):
        shutil.copy(name, "closed")
    Path("closed").chmod(0)
    with without_privileges():
        for place in PLACES:
            text = message(*place.replace("BAD", "closed/x").split())
            assert text.startswith("jaxcls: "), place
        for arguments in (
            "train closed/tiny.py",
            "evaluate closed",
            "predict closed/w.safetensors photo.png",
            "show run closed -o new.png",
            "data tiny.py --data.source folder:closed",
            "train tiny.py --workdir closed",
        ):
            assert "ermission" in message(*arguments.split()), arguments
    Path("closed").chmod(0o755)


def test_an_argument_that_is_empty_is_named(message: Message) -> None:
    text = message("train", "tiny.py", "--workdir", "")
    assert text.startswith("jaxcls: the argument after 'tiny.py --workdir' is empty")
    assert not Path("runs").exists()


def test_one_run_that_cannot_be_read_is_left_out_of_the_table(
    run: Run, tiny_run: tuple[Path, Outcome]
) -> None:
    for name in ("good", "shut"):
        shutil.copytree(tiny_run[0], f"runs/{name}")
    Path("runs/shut").chmod(0)
    with without_privileges():
        result = run("runs")
    Path("runs/shut").chmod(0o755)
    assert result.status == 0
    assert "good" in result.out
    assert "the table is without runs/shut" in result.err


def test_the_current_folder_may_be_gone(
    message: Message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("tiny.py", tmp_path.parent / "config.py")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir("gone")
    (tmp_path / "gone").rmdir()
    config = tmp_path.parent / "config.py"
    text = message("train", config, "--workdir", "run", "--data.source", "folder:photos")
    assert text.startswith("jaxcls: ")
    assert "folder" in text


# A run that others wrote, or on a disk that is mounted read-only


@pytest.fixture
def closed_run(run: Run, tiny_run: tuple[Path, Outcome]) -> Iterator[Path]:
    shutil.copytree(tiny_run[0], "closed")
    close(Path("closed"))
    with without_privileges():
        yield Path("closed")
    close(Path("closed"), mode=0o755)


def test_a_training_does_not_resume_in_it(
    message: Message, closed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcls.training.loop.CompiledSteps", pytest.fail)  # nothing is compiled
    text = message("train", "tiny.py", "--workdir", closed_run, "--allow-changes")
    assert text.startswith("jaxcls: run directory 'closed' cannot be written (Permission denied)")
    assert "use another --workdir" in text


def test_a_log_that_others_wrote_is_found_before_anything_is_compiled(
    message: Message, tiny_run: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run[0], "others")
    Path("others/log.txt").chmod(0o444)
    monkeypatch.setattr("jaxcls.training.loop.CompiledSteps", pytest.fail)
    with without_privileges():
        text = message("train", "tiny.py", "--workdir", "others", "--allow-changes")
    assert text.startswith("jaxcls: run directory 'others' cannot be written")


def test_what_only_reads_it_works(run: Run, closed_run: Path) -> None:
    cv2.imwrite("photo.png", np.zeros((8, 8, 3), np.uint8))
    for arguments in (
        f"evaluate {closed_run} --split test[:16]",
        f"predict {closed_run} photo.png",
        f"show run {closed_run} -o new.png --split test[:16]",
        f"convert {closed_run} -o new.safetensors",
        f"export {closed_run} -o new --platforms cpu",
        f"runs {closed_run}",
    ):
        result = run(*arguments.split())
        assert result.status == 0, (arguments, result.err)
    assert not Path("closed/eval.json").exists()
    assert "README.md" in os.listdir("new")


# What the operating system says


@pytest.mark.parametrize(
    "number",
    [
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EEXIST),
    ],
)
def test_what_the_system_says_about_a_path_is_a_mistake(number: int) -> None:
    error = OSError(number, os.strerror(number), "some/path")
    text = str(mistake_behind(error))
    assert text.startswith(f"'some/path': {os.strerror(number)}; ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file", os.path.join(os.path.dirname(caches.__file__), "x")),
        OSError(errno.ENOENT, "No such file", os.path.join(os.path.dirname(np.__file__), "x")),
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.EIO, "Input/output error", "some/path"),
        OSError("no number"),
        OSError(errno.EBADF, "Bad file descriptor", 7),
        ValueError("a fault"),
        AssertionError(),
    ],
)
def test_a_fault_is_no_mistake(error: Exception) -> None:
    assert mistake_behind(error) is None


def test_a_full_disk_and_a_full_memory_are_mistakes_without_a_path() -> None:
    assert "No space left" in str(mistake_behind(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(MemoryError) as raised:
        np.zeros((1 << 30, 1 << 20), np.uint8)
    assert "data.batch_size" in str(mistake_behind(raised.value))
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore")
    text = str(mistake_behind(full))
    assert "Out of memory" in text
    assert "More" not in text
    assert mistake_behind(jax.errors.JaxRuntimeError("INTERNAL: a fault")) is None


def test_a_long_path_is_shortened() -> None:
    error = OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000)
    assert len(str(mistake_behind(error))) < 300


def test_a_path_that_one_process_cannot_use_ends_the_work_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(agree, "exchange", lambda text: [told.append(text) or text])
    with pytest.raises(UserError, match="'some/path': Permission denied"), shared_errors():
        raise OSError(errno.EACCES, "Permission denied", "some/path")
    assert told == ["'some/path': Permission denied; change its permissions, or name another path"]
    with pytest.raises(ValueError, match="a fault"), shared_errors():
        raise ValueError("a fault")
    assert len(told) == 1


# Folders of caches


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a home folder, as of a container; where the temporary files lie."""

    def nobody(_: int) -> NoReturn:
        raise KeyError("no such user")

    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_without_a_home_caches_are_in_a_private_folder(
    no_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_cache_dir()
    assert folder == no_home / f"jaxcls-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_cache_dir() == folder
    (said,) = caplog.messages
    assert "for caches, because there is no home folder; set XDG_CACHE_HOME to a writable" in said


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o777), lambda path: link_away(path)])
def test_a_folder_that_others_may_have_filled_is_not_used(
    no_home: Path, spoil: Callable[[Path], None]
) -> None:
    folder = make_cache_dir()
    spoil(folder)
    assert folder not in caches.possible_cache_dirs()
    assert not make_cache_dir().is_relative_to(no_home)
    assert not Path("~").exists()


def link_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def test_a_relative_folder_of_caches_is_ignored(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert usual_cache_home() is None
    assert make_cache_dir().is_relative_to(no_home)
    monkeypatch.setenv("HOME", str(no_home))
    assert usual_cache_home() == no_home / ".cache"


@pytest.mark.parametrize("kind", ["a file", "closed", "missing"])
def test_a_folder_that_cannot_be_written_is_replaced(
    no_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = tmp_path / "home"
    if kind == "a file":
        home.write_text("")
    else:
        home.mkdir(mode=0o555)
    monkeypatch.setenv("HOME", str(home / "gone" if kind == "missing" else home))
    with without_privileges():
        assert make_cache_dir().is_relative_to(no_home)
        assert prepared_digits(None).is_relative_to(no_home)


def test_data_in_a_folder_that_cannot_be_written_any_more_are_used(
    no_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    prepared = prepared_digits(None)
    assert prepared.is_relative_to(home)
    close(home)
    with without_privileges():
        assert make_cache_dir().is_relative_to(no_home)
        assert prepared_digits(None) == prepared
    close(home, mode=0o755)


def test_libraries_get_a_folder_where_they_have_none(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MPLCONFIGDIR", "HF_HOME"):  # undone in the end
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    set_library_caches()
    assert os.environ["MPLCONFIGDIR"] == str(make_cache_dir() / "matplotlib")
    assert os.environ["HF_HOME"] == str(make_cache_dir() / "huggingface")
    monkeypatch.setenv("MPLCONFIGDIR", "mine")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(no_home))
    set_library_caches()
    assert os.environ["MPLCONFIGDIR"] == "mine"
    assert "HF_HOME" not in os.environ


def test_a_command_needs_no_home(run: Run, no_home: Path, tmp_path: Path) -> None:
    result = run("data", "tiny.py", "--limit", "8")
    assert result.status == 0
    assert result.out.startswith("digits 'train': 1,442 images")
    assert sorted(os.listdir(tmp_path)) == ["temporary", "tiny.py"]


# Devices


@pytest.fixture
def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What JAX raises where JAX_PLATFORMS asks for a GPU that is not there."""

    def fail() -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail)


@pytest.mark.usefixtures("things", "no_devices")
@pytest.mark.parametrize(
    "arguments",
    [
        "train tiny.py",
        "evaluate w.safetensors",
        "predict w.safetensors photo.png",
        "export run -o new",
        "convert run -o new.safetensors",
        "benchmark tiny.py",
        "compile tiny.py",
        "show schedule tiny.py -o new.png",
        "show data tiny.py -o new.png",
        "show augment tiny.py -o new.png",
        "show run run -o new.png",
    ],
)
def test_devices_that_are_not_there_are_one_message(
    message: Message, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    if arguments.startswith("evaluate"):
        monkeypatch.setattr("jaxcls.inference.open_weights.data_of", lambda _: DataConfig())
    text = message(*arguments.split())
    assert text.startswith("jaxcls: JAX_PLATFORMS: JAX finds no devices for 'cpu'; unset it")


@pytest.mark.parametrize(
    ("chosen", "said", "expected"),
    [
        ("bogus", "Backend 'bogus' is not in the list of known backends: ['cpu']", "for 'bogus'"),
        ("tpu", "Unable to initialize backend 'tpu': no TPU", r"for 'tpu' \(Unable .* no TPU\)"),
        (None, "Unable to initialize backend 'cuda': old driver", r"JAX_PLATFORMS=cpu to use"),
    ],
)
def test_what_jax_says_of_devices_is_handed_on(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, said: str, expected: str
) -> None:
    def fail() -> NoReturn:
        raise RuntimeError(said)

    monkeypatch.setattr(jax, "devices", fail)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", chosen)
    try:
        with pytest.raises(UserError, match=expected):
            all_devices()
        monkeypatch.setattr("jaxcls.distributed.mesh.num_processes", lambda: 2)
        # Another machine may have a driver that does not refuse; no machine knows the other one.
        with pytest.raises(UserError if chosen == "bogus" else RuntimeError):
            all_devices()
    finally:
        jax.config.update("jax_platforms", before)


# Numbers

HUGE = [2**31, 2**63, 10**400]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("field", ["batch_size", "image_size", "canvas_size", "prefetch"])
def test_a_number_that_no_device_counts_is_refused(field: str, value: int) -> None:
    values = encode(Config(num_steps=1))
    values["data"][field] = value
    with pytest.raises(ConfigError, match=f"data.{field}: must be at most 2147483647, got"):
        decode(values)


@pytest.mark.parametrize("field", ["image_size", "canvas_size", "num_threads", "num_workers"])
def test_a_number_that_no_memory_holds_is_refused(field: str) -> None:
    data = dataclasses.replace(DataConfig(), **{field: 10**6})
    with pytest.raises(ConfigError, match=f"data.{field}: must be at most .*, got 1000000"):
        resolve(Config(num_steps=1, data=data))
    with pytest.raises(ConfigError, match=f"data.{field}: must be at most"):
        validate_data(data)


@pytest.mark.parametrize("value", [1e39, 1e308, float("inf"), float("nan")])
def test_a_rate_that_no_device_holds_is_refused(value: float) -> None:
    config = Config(num_steps=1, optimizer=OptimizerConfig(learning_rate=value))
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: must be"):
        decode(encode(config))


@pytest.mark.parametrize("value", [10**400, -(2**200), 1e39])
def test_an_option_that_no_device_holds_is_refused(value: float) -> None:
    optimizer = OptimizerConfig(options={"momentum": value})
    with pytest.raises(ConfigError, match=r"optimizer.options: momentum must be at most"):
        make_optimizer(optimizer, lambda _: 0.1)


def test_more_epochs_than_steps_can_be_counted_are_refused() -> None:
    config = decode(encode(Config(num_epochs=1e30)))
    with pytest.raises(ConfigError, match=r"num_epochs: 1e\+30 epochs are .* at most 2147483647"):
        make_plan(config, 1000)
    assert make_plan(decode(encode(Config(num_steps=2**31 - 1))), 1000).num_steps == 2**31 - 1


def test_a_path_with_nul_in_a_config_is_one_message(message: Message) -> None:
    text = Path("tiny.py").read_text()
    for field in (r'source="folder:a\0b"', r'data_dir="a\0b"'):
        Path("nul.py").write_text(text.replace("batch_size=32", f"batch_size=32, {field}"))
        assert message("data", "nul.py").startswith("jaxcls: ")


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize(
    "arguments",
    [
        *("train tiny.py --num-steps 2147483648", "train tiny.py --seed 9223372036854775808"),
        *("train tiny.py --num-steps 0", "train tiny.py --data.batch-size -1"),
        *("train tiny.py --data.image-size 1000000000", "benchmark tiny.py --seconds nan"),
        *("benchmark tiny.py --seconds inf", "compile tiny.py --num-classes 0"),
        f"evaluate run --step {'9' * 5000}",
        "show augment tiny.py -o new.png --step 2147483648",
        "compile tiny.py --num-classes 2147483648",
        "compile tiny.py --batch-per-chip 2147483648",
        "predict run photo.png --join-timeout 1000000000000",
        "predict run photo.png --join-timeout -1",
        "predict run photo.png --coordinator a:65536 --num-processes 2 --process-id 1",
        "train tiny.py --num-steps None --num-epochs 1e308",
        "show schedule tiny.py -o new.png --num-steps None --num-epochs 1e30",
    ],
)
def test_a_number_out_of_range_is_one_message(message: Message, arguments: str) -> None:
    message(*arguments.split())
