"""A profile of a few training steps, for TensorBoard's profile plugin or Perfetto."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax

from jaxcls.system.errors import one_line
from jaxcls.system.paths import RunPath

logger = logging.getLogger("jaxcls")

SKIPPED_STEPS = 2  # the first ones fill caches and queues


class Profile:
    """Traces some steps into a folder; used as a context manager around the steps.

    The trace begins `SKIPPED_STEPS` steps after `start` and has `steps` steps, or fewer if the run
    ends before. With 0 steps nothing is traced. A trace that cannot be written is a warning, and
    the training continues.
    """

    def __init__(self, folder: RunPath, *, start: int, steps: int):
        self._folder = folder
        self._first = start + SKIPPED_STEPS + 1
        self._last = self._first + steps - 1
        self._tracing = False
        self._settled = not steps  # written, or warned of

    def before(self, step: int) -> None:
        """Begins the trace if `step` is the first traced one."""
        if self._first == step <= self._last:
            with self._warning():
                jax.profiler.start_trace(self._folder, create_perfetto_trace=False)
                self._tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace if `step` is the last traced one, once its results are computed."""
        if self._tracing and step == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace and writes it."""
        if self._tracing:
            self._tracing, self._settled = False, True
            with self._warning():
                jax.profiler.stop_trace()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if not self._settled:
            logger.warning(
                "--profile: the run ended before step %d, where the profile begins", self._first
            )

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # JAX's errors are RuntimeErrors
            self._settled = True
            logger.warning(
                "--profile: no profile in %s (%s); the training continues without it",
                self._folder,
                one_line(error),
            )
