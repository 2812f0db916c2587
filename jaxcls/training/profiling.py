"""A profile of a few training steps, for TensorBoard's profile plugin or Perfetto."""

import logging
from typing import Any

import jax

from jaxcls.system.paths import RunPath

logger = logging.getLogger("jaxcls")

SKIPPED_STEPS = 2  # the first ones fill caches and queues


class Profile:
    """Traces some steps into a folder; used as a context manager around the steps.

    The trace begins `SKIPPED_STEPS` steps after `start` and has `steps` steps, or fewer if the run
    ends before. With 0 steps nothing is traced.
    """

    def __init__(self, folder: RunPath, *, start: int, steps: int):
        self._folder = folder
        self._first = start + SKIPPED_STEPS + 1
        self._last = self._first + steps - 1
        self._tracing = False
        self._written = not steps

    def before(self, step: int) -> None:
        """Begins the trace if `step` is the first traced one."""
        if self._first == step <= self._last:
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
            self._tracing, self._written = False, True
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if not self._written:
            logger.warning(
                "--profile: the run ended before step %d, where the profile begins", self._first
            )
