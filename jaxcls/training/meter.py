"""Turns what the devices report of each step into numbers for a person."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jax import Array

from jaxcls.system.errors import UserError

OF_THE_STEP = ("loss", "grad_norm")  # finite, unless the step is skipped
OF_THE_STATE = ("params_norm", "batch_stats_norm", "ema_norm")  # always finite
REMEDY = "Try a lower optimizer.learning_rate, a longer schedule.warmup or optimizer.clip_norm"


class DivergedError(UserError):
    """The loss, the gradients or the state are no longer finite; the message names the steps."""


def require_finite(step: int, name: str, value: float) -> None:
    """Checks a value that is finite as long as the state after `step` is worth saving.

    Raises:
      DivergedError: the value is not finite.
    """
    if not math.isfinite(value):
        raise DivergedError(
            f"{name} is {value} at step {step}; nothing was saved from this step on. {REMEDY}"
        )


class Meter:
    """Collects the metrics of steps on the devices, and measures the time that steps take.

    `read` fetches them all at once, so that between two reads the host runs ahead of the devices.
    """

    def __init__(self, batch_size: int, *, max_skipped: int, say: Callable[[str], None]):
        """Starts the clock.

        Args:
          batch_size: the examples of a step.
          max_skipped: how many skipped steps in a row end the training (`count_skipped`).
          say: prints which steps were skipped, when their metrics are fetched.
        """
        self._batch_size = batch_size
        self._max_skipped = max_skipped
        self._say = say
        self._pending: dict[int, Mapping[str, Array]] = {}
        self._fetched: dict[int, Mapping[str, Array]] = {}
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

    @property
    def empty(self) -> bool:
        """Whether no step was added since the last `read`."""
        return not (self._pending or self._fetched)

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Keeps the metrics of one step, without waiting for them."""
        self._pending[step] = metrics

    def fetch(self) -> None:
        """Fetches and checks the metrics that were added since the last call; raises as `read`."""
        steps = jax.device_get(self._pending)
        streaks = _skipped_streaks(steps)
        if streaks:
            self._say(_describe(streaks))
        for step, metrics in steps.items():
            names = OF_THE_STATE if metrics.get("skipped") else OF_THE_STEP + OF_THE_STATE
            for name in names:
                if name in metrics:
                    require_finite(step, name, float(metrics[name]))
        longest = max(streaks, key=len, default=range(0))
        if len(longest) >= self._max_skipped:
            raise DivergedError(
                f"{_describe([longest])}, and max_skipped_steps is {self._max_skipped}. {REMEDY}"
            )
        self._fetched |= steps
        self._pending = {}

    def read(self) -> dict[str, float]:
        """Waits until the devices have taken all steps since the last read, and averages them.

        Returns:
          The mean metrics of the steps that were not skipped, none if all were; and
          images_per_second, steps_per_second and data_wait_share.

        Raises:
          DivergedError: the loss, or a norm of gradients or state, of a step is not finite, and it
            was not skipped; or as many steps in a row were skipped as end the training.
        """
        self.fetch()
        seconds = time.perf_counter() - self._since
        count = len(self._fetched)
        taken = [metrics for metrics in self._fetched.values() if not metrics.get("skipped")]
        means = {
            name: sum(float(metrics[name]) for metrics in taken) / len(taken)
            for name in (taken[0] if taken else {})
        }
        rates = {
            "images_per_second": count * self._batch_size / seconds,
            "steps_per_second": count / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._fetched = {}
        self.restart_clock()
        return means | rates


def _skipped_streaks(steps: Mapping[int, Mapping[str, Array]]) -> list[range]:
    """The steps that were skipped in a row, from the metrics of steps that follow each other.

    The first streak may begin before these steps.
    """
    skipped = {step: int(metrics.get("skipped", 0)) for step, metrics in steps.items()}
    return [
        range(step - count + 1, step + 1)
        for step, count in skipped.items()
        if count and not skipped.get(step + 1)
    ]


def _describe(streaks: Sequence[range]) -> str:
    names = ", ".join(
        f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        for steps in streaks
    )
    return f"skipped {names}, because the loss or the gradients were not finite"
