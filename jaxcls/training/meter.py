"""Turns what the devices report of each step into numbers for a person."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

import jax
from jax import Array

from jaxcls.system.errors import UserError

MUST_BE_FINITE = ("loss", "grad_norm", "params_norm", "batch_stats_norm", "ema_norm")


class DivergedError(UserError):
    """The loss, the gradients or the state are no longer finite; the message names the step."""


def require_finite(step: int, name: str, value: float) -> None:
    """Checks a value that is finite as long as the state after `step` is worth saving.

    Raises:
      DivergedError: the value is not finite.
    """
    if not math.isfinite(value):
        raise DivergedError(
            f"{name} is {value} at step {step}; nothing was saved from this step on. Try a lower "
            f"optimizer.learning_rate, a longer schedule.warmup or optimizer.clip_norm"
        )


class Meter:
    """Collects the metrics of steps on the devices, and measures the time that steps take.

    `read` fetches them all at once, so that between two reads the host runs ahead of the devices.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._pending: dict[int, Mapping[str, Array]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restarts the clock, after something other than training took time."""
        self._since = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Keeps the metrics of one step, without waiting for them."""
        self._pending[step] = metrics

    def fetch(self) -> Mapping[int, Mapping[str, Array]]:
        """Returns the metrics of each step since the last read; raises as `read` does."""
        steps = jax.device_get(self._pending)
        for step, metrics in steps.items():
            for name in MUST_BE_FINITE:
                if name in metrics:
                    require_finite(step, name, float(metrics[name]))
        return steps

    def read(self) -> dict[str, float]:
        """Waits until the devices have taken all steps since the last read, and averages them.

        Returns:
          The mean metrics, and images_per_second, steps_per_second and data_wait_share.

        Raises:
          DivergedError: the loss, or a norm of gradients or state, of a step is not finite.
        """
        steps = self.fetch()
        seconds = time.perf_counter() - self._since
        count = len(steps)
        means = {
            name: sum(float(metrics[name]) for metrics in steps.values()) / count
            for name in next(iter(steps.values()))
        }
        rates = {
            "images_per_second": count * self._batch_size / seconds,
            "steps_per_second": count / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._pending = {}
        self.restart_clock()
        return means | rates
