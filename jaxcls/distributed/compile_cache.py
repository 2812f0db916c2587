"""Keeps compiled programs in the user's cache folder, so that a restarted run need not compile.

JAX finds them by a key, which is a digest of program, options and versions. It would run whatever
it finds there: zstandard, with which it compresses where it can, notices few damages, and nothing
tells it that an entry belongs to another key. So each entry of ours begins with a digest of its key
and its content. An entry without a good digest is deleted, and its program is compiled again.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path

from etils import epath

from jaxcls.system.caches import is_private, make_cache_dir
from jaxcls.system.errors import one_line
from jaxcls.system.output import warn_once
from jaxcls.system.paths import RunPath, is_url, run_path
from jaxcls.system.permissions import make_private
from jaxcls.system.whole_files import SUFFIX, write_whole

MAX_BYTES = 4 << 30  # above this the least recently used programs are deleted

_DIGEST_BYTES = 32
_NO_LIMIT = -1  # as in JAX's settings
# Our entries, and those of JAX and of older versions.
_ENTRY = re.compile(r"-[0-9a-f]{64}-(checked|cache|atime)$")
# An entry that is being written. If it is an hour old, its process was killed.
_UNFINISHED = re.compile(r"^\..*-[0-9a-f]{64}-checked\.[0-9a-f]+$")
_WRITING_SECONDS = 3600

logger = logging.getLogger("jaxcls")


def keep_compiled(run: str | None = None) -> None:
    """Turns the compile cache on, unless JAX's own settings turn it off.

    If these settings name a folder, that one is used. The user's cache folder is not used if other
    users could write to it, because its programs are run.

    Args:
      run: the directory of the run. If it is in a bucket, the cache is RUN.compiled beside it, so
        that all processes, and a restart on other machines, find what process 0 compiled.
    """
    import jax
    from jax._src import compilation_cache

    assert hasattr(compilation_cache, "LRUCache"), "this version of JAX makes its cache elsewhere"
    compilation_cache.LRUCache = CheckedPrograms  # pyright: ignore[reportPrivateImportUsage]
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    # XLA's own files of GPU autotuning would lie in the same folder, without a digest.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if run is not None and is_url(run):
        folder = run_path(f"{run.rstrip('/')}.compiled")  # an error now if the extra is missing
        jax.config.update("jax_compilation_cache_dir", str(folder))
        return
    folder = make_cache_dir() / "compiled"
    try:
        make_private(folder)
        private = is_private(folder)
    except OSError as error:
        logger.warning(
            "compiled programs are not kept, so each start compiles again: %s: %s; make the folder "
            "writable, or set JAX_COMPILATION_CACHE_DIR",
            folder,
            error.strerror,
        )
        return
    if not private:
        logger.warning(
            "compiled programs are not kept: other users may write to %s; run chmod 700 on it",
            folder,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)


class CheckedPrograms:
    """Compiled programs in a folder or a bucket, which JAX uses in place of its own `LRUCache`.

    No method raises, because a program can always be compiled again. Several processes may use a
    folder at a time, also together with JAX's own class, which has other names of files.
    """

    def __init__(self, path: str, *, max_size: int):
        """Opens the programs in a folder.

        Args:
          path: the folder, which need not exist, or a URL of a bucket.
          max_size: the size of the folder in bytes, above which the least recently used programs
            are deleted; -1 means no limit. In a bucket there is none.
        """
        self._path: RunPath = epath.Path(path) if is_url(path) else Path(path)
        self._max_size = _NO_LIMIT if is_url(path) else max_size

    def get(self, key: str) -> bytes | None:
        """What `put` stored under a key; None if there is nothing, or if it is damaged."""
        path = self._file(key)
        try:
            entry = path.read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            entry = b""
        except Exception as error:  # errors of a bucket have many types
            warn_once(
                f"cannot read the compiled program {path} ({one_line(error)}); it is compiled again"
            )
            return None
        digest, content = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
        if digest != _digest(key, content):
            _delete_damaged(path)
            return None
        if self._max_size != _NO_LIMIT:
            with contextlib.suppress(OSError):
                os.utime(path)
        return content

    def put(self, key: str, value: bytes) -> None:
        """Stores a program, unless it is larger than the folder may be."""
        entry = _digest(key, value) + value
        if self._max_size != _NO_LIMIT and len(entry) > self._max_size:
            return
        try:
            if isinstance(self._path, Path):
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._make_room(self._path, len(entry))
            write_whole(self._file(key), entry)
        except Exception as error:  # errors of a bucket have many types
            warn_once(f"compiled programs are not kept in {self._path} ({one_line(error)})")

    def _file(self, key: str) -> RunPath:
        return self._path / f"{key}-checked"

    def _make_room(self, folder: Path, size: int) -> None:
        """Deletes the least recently used programs until `size` more bytes fit into the folder."""
        if self._max_size == _NO_LIMIT:
            return
        found = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another process may have deleted it
                status = path.lstat()
                old = status.st_mtime < time.time() - _WRITING_SECONDS
                if _ENTRY.search(path.name) or (
                    old and _UNFINISHED.search(path.name.removesuffix(SUFFIX))
                ):
                    found.append((status.st_mtime_ns, status.st_size, path))
        total = size + sum(bytes_of_entry for _, bytes_of_entry, _ in found)
        for _, bytes_of_entry, path in sorted(found):
            if total <= self._max_size:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= bytes_of_entry


def _digest(key: str, content: bytes) -> bytes:
    digest = hashlib.sha256(key.encode() + b"\0")
    digest.update(content)
    return digest.digest()


def _delete_damaged(path: RunPath) -> None:
    then = "it is deleted, and compiled again"
    try:
        if isinstance(path, Path) and path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except Exception as error:  # errors of a bucket have many types
        then = f"it is compiled again, but cannot be deleted ({one_line(error)})"
    logger.warning("the compiled program %s is damaged; %s", path, then)
