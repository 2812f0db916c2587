"""Keeps compiled programs in the user's cache folder, so that a restarted run need not compile.

JAX finds them by program, options and versions. One that cannot be read is compiled again.
"""

import logging

from jaxcls.system.caches import cache_dir, is_private
from jaxcls.system.paths import is_url, run_path

MAX_BYTES = 4 << 30  # above this the least recently used programs are deleted

logger = logging.getLogger("jaxcls")


def keep_compiled(run: str | None = None) -> None:
    """Turns the compile cache on, unless JAX's own settings name a folder or turn it off.

    The cache is not used if other users could write to its folder, because its programs are run.

    Args:
      run: the directory of the run. If it is in a bucket, the cache is RUN.compiled beside it, so
        that all processes, and a restart on other machines, find what process 0 compiled.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    if run is not None and is_url(run):
        folder = run_path(f"{run.rstrip('/')}.compiled")  # an error now if the extra is missing
        jax.config.update("jax_compilation_cache_dir", str(folder))
        return
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = is_private(folder)
    except OSError as error:
        logger.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return
    if not private:
        logger.warning("compiled programs are not kept: other users may write to %s", folder)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
