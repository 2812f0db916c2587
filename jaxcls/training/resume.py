"""Where a training starts: at the newest good checkpoint of its run, or at a new state."""

from jaxcls.data.sources import Source
from jaxcls.distributed.agree import require_same, shared_errors
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.training.build import Training
from jaxcls.training.compiled_steps import CompiledSteps
from jaxcls.training.initial_values import make_initial_values
from jaxcls.training.state import TrainState


def restore_or_initialize(
    training: Training, checkpoints: Checkpoints, source: Source, steps: CompiledSteps
) -> tuple[TrainState, int, str]:
    """Returns (state, step, message): the newest good checkpoint, or a new state at step 0.

    The message says which weights were loaded. A resumed run no longer needs the weights that it
    started from.
    """
    # Compile in the background while the checkpoint or the weights are read.
    saved = checkpoints.steps()
    if training.plan.num_steps not in saved:
        steps.start_compiling(max(saved, default=0))
    message = ""
    if checkpoints.any_saved():
        restored = checkpoints.restore(training.abstract_state())
        state, step = restored.state, restored.step
    else:
        with shared_errors():
            values, message = make_initial_values(training.config, training.model, source)
        state, step = training.init(values), 0
    require_same({"the step to resume from": step})  # a shared disk may show old listings
    return state, step, message
