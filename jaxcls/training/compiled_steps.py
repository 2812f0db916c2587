"""The compiled training steps of a run: one for each image size, ready when its stage begins."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from jaxcls.config.progressive import stage_of
from jaxcls.config.sizes import ImageSize, describe_size
from jaxcls.distributed.job import COMPILER
from jaxcls.distributed.watchdog import COMPILING, Watchdog
from jaxcls.training.build import CompiledStep, Training
from jaxcls.training.state import TrainState
from jaxcls.training.step import Batch, Metrics

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class CompiledSteps:
    """Compiles the step of each image size once, while the stage before it trains.

    The compiler runs in a thread of its own and does not hold Python's lock, so training continues.
    Steps count from 0 here.
    """

    def __init__(self, training: Training):
        self._training = training
        self._compiling: dict[ImageSize, Future[CompiledStep]] = {}
        self._current: tuple[int, TrainStep] | None = None  # a stage and its compiled step
        self._announced: set[ImageSize] = set()

    def start_compiling(self, step: int) -> Future[CompiledStep]:
        """Starts to compile what `step` needs, unless that has been started before."""
        size = self._training.image_size_at(step)
        if size not in self._compiling:
            self._compiling[size] = compiling = Future()
            # A daemon, so that the end of the training does not wait for a compile.
            threading.Thread(
                target=_fulfil,
                args=(compiling, lambda: self._training.compile_step(size)),
                name=COMPILER,
                daemon=True,
            ).start()
        return self._compiling[size]

    def for_step(self, step: int, *, watchdog: Watchdog, say: Callable[[str], None]) -> TrainStep:
        """Returns the compiled step of the stage that `step` is in.

        At the first call in a stage, waits until its step is compiled and starts to compile that of
        the next stage.

        Args:
          step: the step to take.
          watchdog: is notified that this process compiles, which may take long.
          say: prints which stage begins, and how long compiling took.
        """
        ends = self._training.plan.stage_ends
        stage = stage_of(step, ends)
        if self._current is None or self._current[0] != stage:
            watchdog.note_progress(step, COMPILING)
            compiled = self.start_compiling(step).result()
            self._announce(step, compiled, say)
            self.start_compiling(ends[stage])  # the next stage; after the last one nothing new
            self._current = stage, compiled.program
        return self._current[1]

    def _announce(self, step: int, compiled: CompiledStep, say: Callable[[str], None]) -> None:
        size, ends = self._training.image_size_at(step), self._training.plan.stage_ends
        if len(ends) > 1:
            pixels = describe_size(size)
            stage = stage_of(step, ends) + 1
            say(f"stage {stage} of {len(ends)}: {pixels} px from step {step + 1}")
        if size not in self._announced:
            self._announced.add(size)
            say(
                f"compiled the training step: {compiled.trace_seconds:.1f} s tracing, "
                f"{compiled.compile_seconds:.1f} s compiling"
            )


def _fulfil[T](future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # it is raised where the result is asked for
        future.set_exception(error)
