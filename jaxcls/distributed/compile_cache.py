"""Compiled programs are kept in the user's cache folder, so that a run's restart need not compile.

JAX keys them by program, options and versions; one that cannot be read is compiled again.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from jaxcls.system.caches import cache_dir, only_ours
from jaxcls.system.paths import is_url, run_path

MAX_BYTES = 4 << 30  # the longest unused go first

logger = logging.getLogger("jaxcls")


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled programs of this user lie."""
    return cache_dir(environment) / "compiled"


def keep_compiled(run: str | None = None) -> None:
    """Turns the cache on, unless JAX's own settings name a folder or turn it off.

    A folder that others could write to is not used: what lies in it is run.

    Args:
      run: directory of the run. The programs of one in a bucket lie beside it, in RUN.compiled,
        where every process finds what process 0 compiled, and a restart on other machines, too.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    if run is not None and is_url(run):
        folder = run_path(f"{run.rstrip('/')}.compiled")  # an error now if the extra is missing
        jax.config.update("jax_compilation_cache_dir", str(folder))
        return
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = only_ours(folder)
    except OSError as error:
        logger.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return
    if not ours:
        logger.warning("compiled programs are not kept: others may write to %s", folder)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
