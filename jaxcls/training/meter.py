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
    """Refuses a value that must be finite for the state after `step` to be worth keeping.

    Raises:
      DivergedError: it is not finite.
    """
    if not math.isfinite(value):
        raise DivergedError(
            f"{name} is {value} at step {step}; nothing was saved from this step on. Try a lower "
            f"optimizer.learning_rate, a longer schedule.warmup or optimizer.clip_norm"
        )


class Meter:
    """Gathers metrics on the devices; `read` fetches them all at once and gives the average.

    The host runs ahead of the devices between two reads.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._pending: dict[int, Mapping[str, Array]] = {}
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, after something else than training took time."""
        self._since = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Notes one step's metrics without waiting for them."""
        self._pending[step] = metrics

    def check(self) -> Mapping[int, Mapping[str, Array]]:
        """The metrics of each step since the last read; raises as `read` does."""
        steps = jax.device_get(self._pending)
        for step, metrics in steps.items():
            for name in MUST_BE_FINITE:
                if name in metrics:
                    require_finite(step, name, float(metrics[name]))
        return steps

    def read(self) -> dict[str, float]:
        """Averages all steps since the last read; waits until the devices have taken them.

        Returns:
          The metrics, and images_per_second, steps_per_second and data_wait_share since then.

        Raises:
          DivergedError: a step's loss, or the norm of its gradients or new state, is not finite.
        """
        steps = self.check()
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
        self.restart()
        return means | rates
