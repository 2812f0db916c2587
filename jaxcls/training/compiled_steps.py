"""The compiled training steps of a run, one an image size, each ready when its stage begins."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from jaxcls.config.progressive import stage_of
from jaxcls.distributed.job import COMPILER
from jaxcls.training.build import CompiledStep, Training
from jaxcls.training.state import TrainState
from jaxcls.training.step import Batch, Metrics


class CompiledSteps:
    """The compiled training step of each image size, compiled once and ahead of its stage.

    A stage's begin starts the compile of the next stage's step, in a thread: the compiler does not
    hold Python's lock, so training goes on.
    """

    def __init__(self, training: Training):
        self._training = training
        self._compiling: dict[int, Future[CompiledStep]] = {}
        self._entered: set[int] = set()

    def begin(self, step: int) -> Future[CompiledStep]:
        """Starts to compile what the step, counted from 0, needs."""
        size = self._training.image_size_at(step)
        if size not in self._compiling:
            self._compiling[size] = compiling = Future()
            # A daemon, so that what ends the training need not wait for what it no longer needs.
            threading.Thread(
                target=_fulfil,
                args=(compiling, lambda: self._training.compile_step(size)),
                name=COMPILER,
                daemon=True,
            ).start()
        return self._compiling[size]

    def enter(
        self, step: int, *, say: Callable[[str], None]
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The program of the stage that the step, counted from 0, is in; starts the next one's."""
        size, ends = self._training.image_size_at(step), self._training.plan.stage_ends
        compiled = self.begin(step).result()
        if len(ends) > 1:
            say(f"stage {stage_of(step, ends) + 1} of {len(ends)}: {size} px from step {step + 1}")
        if size not in self._entered:
            self._entered.add(size)
            say(
                f"compiled the training step: {compiled.trace_seconds:.1f} s tracing, "
                f"{compiled.compile_seconds:.1f} s compiling"
            )
        self.begin(ends[stage_of(step, ends)])
        return compiled.program


def _fulfil[T](future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # it is raised where the result is asked for
        future.set_exception(error)
