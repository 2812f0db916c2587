"""Where a training starts: at the newest good checkpoint of its run, or at a new state."""

import dataclasses

from jaxcls.data.sources import Source
from jaxcls.distributed.agree import require_same, shared_errors
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.training.build import Training
from jaxcls.training.compiled_steps import CompiledSteps
from jaxcls.training.initial_values import make_initial_values
from jaxcls.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a training starts.

    Attributes:
      state: the first step donates it.
      step: the last step that the state has taken; 0 for a new state.
      evaluated: whether the state was evaluated before it was saved.
      message: which weights were loaded; empty for a restored state.
    """

    state: TrainState
    step: int
    evaluated: bool = False
    message: str = ""


def restore_or_initialize(
    training: Training, checkpoints: Checkpoints, source: Source, steps: CompiledSteps
) -> Beginning:
    """Restores the newest good checkpoint, or makes a new state.

    A resumed run no longer needs the weights that it started from.
    """
    checkpoints.put_back_replaced()  # otherwise that step would not be found
    saved = checkpoints.steps()
    # Compile in the background while the checkpoint or the weights are read.
    if training.plan.num_steps not in saved:
        steps.start_compiling(max(saved, default=0))
    if checkpoints.any_saved():
        # Only a run with `on_non_finite="skip"` has a count of skipped steps, and the field may
        # change between starts.
        restored = checkpoints.restore(training.abstract_state(), optional={"skipped"})
        beginning = Beginning(
            state=restored.state, step=restored.step, evaluated=restored.metric is not None
        )
        checkpoints.delete_unfinished(restored.step)  # the restore has named what is half-written
    else:
        with shared_errors():
            values, message = make_initial_values(training.config, training.model, source)
        beginning = Beginning(state=training.init(values), step=0, message=message)
    # A shared disk may show one process an old listing, so that it finds another checkpoint.
    require_same(
        {"the step to resume from": beginning.step},
        remedy="the shared disk may have shown an old listing; start the job again",
    )
    return beginning
