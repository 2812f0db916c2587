import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from jax._src import compilation_cache, monitoring
from jax._src.lru_cache import LRUCache
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxcls.config import Config, encode
from jaxcls.distributed.compile_cache import CheckedPrograms, keep_compiled
from jaxcls.models import registry
from jaxcls.system.caches import make_cache_dir

COMPILE = """
import json, sys
import jax
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.config import decode
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec
from jaxcls.distributed.mesh import make_mesh
from jaxcls.training.build import build_training
keep_compiled()
registry.SPECS["tiny"] = eval(sys.argv[1])
config = decode(json.loads(sys.argv[2]))
training = build_training(config, num_classes=10, num_examples=1000, mesh=make_mesh())
print(training.compile_step().compile_seconds)
"""


def compile_seconds(home: Path, config: Config) -> tuple[float, str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "XLA_FLAGS": ""}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            COMPILE,
            repr(registry.model_spec("tiny")),
            json.dumps(encode(config)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1]), done.stderr


@pytest.mark.slow
def test_the_second_start_compiles_in_a_fifth_and_a_corrupt_cache_compiles_again(
    tmp_path: Path, tiny_config: Config
) -> None:
    first, _ = compile_seconds(tmp_path, tiny_config)
    folder = tmp_path / "jaxcls/compiled"
    assert folder.stat().st_mode & 0o777 == 0o700
    entries = [path for path in folder.iterdir() if path.name.endswith("-checked")]
    assert entries
    second, _ = compile_seconds(tmp_path, tiny_config)
    assert second <= first / 5, (first, second)
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    third, err = compile_seconds(tmp_path, tiny_config)
    assert third > first / 5
    assert all(
        f"the compiled program {entry} is damaged; it is deleted" in err for entry in entries
    )
    assert "Traceback" not in err


@pytest.fixture
def no_cache() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("no_cache")
def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = make_cache_dir() / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    with caplog.at_level(logging.WARNING, "jaxcls"):
        keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    assert "other users may write" in caplog.text
    # XLA's own files would lie in the same folder without a digest.
    assert jax.config.jax_persistent_cache_enable_xla_caches == "none"


@pytest.mark.usefixtures("no_cache")
def test_jaxs_own_settings_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    keep_compiled()
    jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None
    assert not (make_cache_dir() / "compiled").exists()


# Damaged entries

KEY, OTHER = (f"jit_{name}-{digit * 64}" for name, digit in (("step", "0"), ("evaluate", "a")))
PROGRAM = bytes(range(90))


@pytest.fixture
def programs(tmp_path: Path) -> CheckedPrograms:
    programs = CheckedPrograms(str(tmp_path), max_size=-1)
    programs.put(KEY, PROGRAM)
    programs.put(OTHER, PROGRAM)
    return programs


def file_of(key: str, folder: Path) -> Path:
    return folder / f"{key}-checked"


def require_healed(
    programs: CheckedPrograms, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged entry is not believed, but deleted and named; then it can be stored again."""
    assert programs.get(KEY) is None
    assert not file_of(KEY, folder).exists()
    (said,) = caplog.messages
    assert said == (
        f"the compiled program {file_of(KEY, folder)} is damaged; it is deleted, and compiled again"
    )
    programs.put(KEY, PROGRAM)
    assert programs.get(KEY) == PROGRAM
    assert programs.get(OTHER) == PROGRAM
    assert len(caplog.messages) == 1


def test_a_program_with_any_flipped_bit_is_not_believed(
    programs: CheckedPrograms, tmp_path: Path
) -> None:
    entry = file_of(KEY, tmp_path)
    whole = entry.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        entry.write_bytes(damaged)
        assert programs.get(KEY) is None
        assert not entry.exists()


def become_a_folder(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()
    (entry / "inside").write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.write_bytes(b""),
        lambda entry: entry.write_bytes(entry.read_bytes()[:31]),
        lambda entry: entry.write_bytes(entry.read_bytes()[:32]),
        lambda entry: entry.write_bytes(entry.read_bytes()[:-1]),
        lambda entry: entry.write_bytes(entry.read_bytes() + b"0"),
        lambda entry: entry.write_bytes(PROGRAM),  # as JAX's own entries, without a digest
        lambda entry: shutil.copy(file_of(OTHER, entry.parent), entry),
        become_a_folder,
    ],
    ids=["emptied", "half a digest", "no program", "cut", "longer", "JAX", "swapped", "folder"],
)
def test_a_damaged_program_is_deleted_and_named(
    damage: Callable[[Path], object],
    programs: CheckedPrograms,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(file_of(KEY, tmp_path))
    require_healed(programs, tmp_path, caplog)


def test_entries_of_jax_and_of_older_versions_are_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / f"{KEY}-cache"
    old.write_bytes(PROGRAM)
    programs = CheckedPrograms(str(tmp_path), max_size=-1)
    assert programs.get(KEY) is None
    programs.put(KEY, PROGRAM[1:])
    assert programs.get(KEY) == PROGRAM[1:]
    assert old.read_bytes() == PROGRAM
    assert not caplog.messages


# Disks that refuse


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_written_is_read_and_named_once(
    number: int,
    programs: CheckedPrograms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    programs = CheckedPrograms(str(tmp_path), max_size=10_000)
    for module, name in ((os, "utime"), (Path, "mkdir"), (os, "fsync"), (Path, "unlink")):
        monkeypatch.setattr(module, name, refuse(number))
    for key in (f"{KEY}1", f"{KEY}2"):
        programs.put(key, PROGRAM)
        assert programs.get(key) is None
    assert programs.get(KEY) == PROGRAM
    reason = os.strerror(number)
    assert caplog.messages == [f"compiled programs are not kept in {tmp_path} ({reason})"]
    monkeypatch.undo()
    caplog.clear()
    file_of(KEY, tmp_path).write_bytes(b"damaged")
    monkeypatch.setattr(Path, "unlink", refuse(number))
    assert programs.get(KEY) is None
    assert caplog.messages == [
        f"the compiled program {file_of(KEY, tmp_path)} is damaged; it is compiled again, but "
        f"cannot be deleted ({reason})"
    ]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOTDIR, errno.ESTALE])
def test_a_program_that_cannot_be_read_is_compiled_again(
    number: int,
    programs: CheckedPrograms,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse(number))
        assert programs.get(KEY) is None
    assert os.strerror(number) in caplog.text
    programs.put(KEY, PROGRAM[1:])
    assert programs.get(KEY) == PROGRAM[1:]


def test_a_disk_that_is_full_in_the_middle_of_an_entry_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def keep_half(file: int) -> None:
        os.ftruncate(file, len(PROGRAM) // 2)
        refuse(errno.ENOSPC)()

    monkeypatch.setattr(os, "fsync", keep_half)
    programs = CheckedPrograms(str(tmp_path), max_size=-1)
    programs.put(KEY, PROGRAM)
    assert programs.get(KEY) is None
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in caplog.text


KILLED = """
import os, sys
from pathlib import Path
from jaxcls.distributed.compile_cache import CheckedPrograms

def end(*_):
    os.kill(os.getpid(), 9)

def end_with_half(file):
    os.ftruncate(file, 3)
    end()

if sys.argv[1] == "write":
    os.fsync = end_with_half
else:
    Path.replace = end
CheckedPrograms(sys.argv[2], max_size=-1).put(sys.argv[3], b"program")
"""


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_kill_in_the_middle_of_writing_leaves_no_entry(
    moment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, tmp_path, KEY], check=False)
    assert killed.returncode == -9
    (rest,) = tmp_path.iterdir()
    os.utime(rest, (0, 0))
    programs = CheckedPrograms(str(tmp_path), max_size=500)
    assert programs.get(KEY) is None
    assert not caplog.messages
    for number in range(10):
        programs.put(f"{KEY[:-1]}{number}", PROGRAM)
    assert not rest.exists()  # it was deleted to make room


# The limit of the size


def test_the_least_recently_used_programs_are_deleted(tmp_path: Path) -> None:
    keys = [f"jit_f-{number:064x}" for number in range(6)]
    (tmp_path / "mine").write_bytes(bytes(10_000))  # not ours, so neither counted nor deleted
    old = tmp_path / f"{KEY}-cache"
    old.write_bytes(bytes(300))
    os.utime(old, (0, 0))
    size = len(PROGRAM) + 32
    programs = CheckedPrograms(str(tmp_path), max_size=3 * size)
    for number, key in enumerate(keys[:3]):
        programs.put(key, PROGRAM)
        os.utime(file_of(key, tmp_path), (number + 1, number + 1))
    assert not old.exists()
    assert programs.get(keys[0]) == PROGRAM  # so it is now the last one that was used
    programs.put(keys[3], PROGRAM)
    assert [programs.get(key) is not None for key in keys] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    programs.put(keys[4], bytes(4 * size))  # larger than the limit
    assert programs.get(keys[4]) is None
    assert programs.get(keys[3]) == PROGRAM
    assert (tmp_path / "mine").exists()


def test_programs_that_are_stored_and_read_at_a_time_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = {f"jit_f-{number:064x}": random.Random(number).randbytes(5000) for number in range(8)}

    def use(seed: int) -> int:
        chance = random.Random(seed)
        programs = CheckedPrograms(str(tmp_path), max_size=30_000)
        hits = 0
        for _ in range(60):
            key = chance.choice(list(program))
            found = programs.get(key)
            assert found in (None, program[key])
            hits += found is not None
            programs.put(key, program[key])
        return hits

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(use, range(4))) > 60
    assert not caplog.messages


# With JAX


@pytest.fixture
def jax_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of JAX in a folder that the user chose, with a compressor without a checksum."""
    for name in ("compress_executable", "decompress_executable"):
        monkeypatch.setattr(compilation_cache, name, lambda data: data)
    monkeypatch.setattr(compilation_cache, "LRUCache", LRUCache)  # so that it is put back
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "users"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()
    keep_compiled()
    yield tmp_path / "users"
    monkeypatch.undo()
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def compute() -> tuple[float, float]:
    jax.clear_caches()
    return float(jax.jit(lambda x: x * 3 + 1)(2.0)), float(jax.jit(lambda x: x - 9)(2.0))


def test_jax_compiles_damaged_and_swapped_programs_again(
    jax_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits: list[str] = []
    monkeypatch.setattr(monitoring, "record_event", lambda event, **_: hits.append(event))
    hit = "/jax/compilation_cache/cache_hits"
    assert compute() == (7.0, -7.0)
    assert hits.count(hit) == 0
    entries = sorted(jax_cache.iterdir())
    assert len(entries) >= 2
    assert all(entry.name.endswith("-checked") for entry in entries)
    assert compute() == (7.0, -7.0)
    assert hits.count(hit) == len(entries)
    assert not caplog.messages

    one, other = entries[0].read_bytes(), entries[1].read_bytes()
    damages = {
        "swapped": {entries[0]: other, entries[1]: one},
        "flipped": {entry: entry.read_bytes()[:-9] + bytes(9) for entry in entries},
    }
    for contents in damages.values():
        hits.clear()
        caplog.clear()
        for entry, content in contents.items():
            entry.write_bytes(content)
        assert compute() == (7.0, -7.0)
        assert hits.count(hit) == len(entries) - len(contents)
        assert len(caplog.messages) == len(contents)
        assert all(any(str(entry) in said for said in caplog.messages) for entry in contents)
        assert sorted(jax_cache.iterdir()) == entries
        assert compute() == (7.0, -7.0)
        assert len(caplog.messages) == len(contents)
