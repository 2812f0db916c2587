"""What a training tells the user before its first step."""

import re
from collections.abc import Sequence

from jaxcls.config import Config, is_own_network
from jaxcls.config.sizes import describe_size
from jaxcls.data.order import Order, steps_per_epoch, training_order
from jaxcls.data.source import Source
from jaxcls.distributed.mesh import bytes_per_device
from jaxcls.models.interface import PyTree
from jaxcls.runs.directory import RunInfo
from jaxcls.training.build import Training
from jaxcls.training.experiment import Experiment
from jaxcls.training.intervals import Intervals, intervals_of
from jaxcls.training.schedules import Plan
from jaxcls.training.state import TrainState

_UNEQUAL_MICRO_BATCHES = (
    "warning: with {network}, each micro-batch is normalised by itself, so optimizer.micro_batches "
    "changes the result{remedy}"
)


def start_messages(
    experiment: Experiment,
    training: Training,
    *,
    start: int,
    notes: Sequence[str],
    changes: Sequence[str],
) -> list[str]:
    """Describes the training, what differs from an earlier start, and what may surprise.

    Args:
      experiment: what the training works on.
      training: what was built from it.
      start: the last step that was taken; 0 for a new run.
      notes: messages so far: how the run was claimed, and which weights were loaded.
      changes: the fields that were changed since the run began (`prepare_run`).
    """
    num_steps, state = training.plan.num_steps, training.abstract_state()
    if start >= num_steps:
        introduction = f"finished already, at step {start}; nothing is left to train"
    else:
        introduction = _introduction(training, state, experiment.source, start)
    warnings = [
        epoch_warning(
            experiment.recorded,
            experiment.info,
            num_examples=len(experiment.source),
            step=start,
            plan=training.plan,
        ),
        _changed_code(experiment) if start < num_steps else None,
        micro_batch_warning(training.config, batch_stats=state.batch_stats),
        missed_evaluations(intervals_of(training), training.config) if start < num_steps else None,
    ]
    changed = [f"changed since the run began: {change}" for change in changes]
    return [message for message in (introduction, *notes, *changed, *warnings) if message]


def micro_batch_warning(config: Config, *, batch_stats: PyTree) -> str | None:
    """A warning if micro-batches give another result than the whole batch."""
    model = config.model
    if config.optimizer.micro_batches == 1 or not batch_stats:
        return None
    if is_own_network(model.name):
        return _UNEQUAL_MICRO_BATCHES.format(network=model.name, remedy="")
    if model.batch_norm != "global" or model.freeze_batch_norm:
        return None
    return _UNEQUAL_MICRO_BATCHES.format(
        network='model.batch_norm "global"',
        remedy="; a group size makes them equal the whole batch",
    )


def missed_evaluations(intervals: Intervals, config: Config) -> str | None:
    """A warning if a step that is evaluated, and may be the best, is not saved."""
    if not config.checkpoint.keep_best or intervals.eval_every % intervals.save_every == 0:
        return None
    if intervals.num_steps <= intervals.eval_every:  # only the last step is evaluated, and saved
        return None
    return (
        f"warning: checkpoints (every {intervals.save_every} steps) do not coincide with all "
        f"evaluations (every {intervals.eval_every}), so the best step may not be saved; make "
        f"eval_every_steps a multiple of checkpoint.every_steps"
    )


def epoch_warning(
    old: RunInfo | None, new: RunInfo, *, num_examples: int, step: int, plan: Plan
) -> str | None:
    """A warning if a resumed run counts epochs or orders the data differently than before.

    Epoch and order are computed from the step alone, so that a run may resume anywhere. After a
    change of the config they are those of a run that had the new values from its start.

    Args:
      old: the record of the run (None: it has none).
      new: the record with which it resumes.
      num_examples: the number of training examples now.
      step: the last step that was taken.
      plan: the length of the training with the new values.
    """
    if old is None or step == 0:
        return None
    old_examples = _num_examples(old)
    old_examples = num_examples if old_examples is None else old_examples
    reordered = old.data != new.data if old.data is not None else False
    reordered |= _order(old, old_examples) != _order(new, num_examples)
    reordered |= old.config.data.sampling != new.config.data.sampling
    if not reordered:
        return None
    before = steps_per_epoch(old_examples, old.config.data)
    now = plan.steps_per_epoch
    parts = []
    if before != now:
        parts.append(
            f"an epoch has {now:g} steps now and had {before:g}, so the run resumes at epoch "
            f"{step / now:.2f}, not {step / before:.2f}"
        )
    parts.append(
        "the data order is now that of a run started with the new values, so some images of this "
        "epoch may repeat and others be skipped until the next"
    )
    if step >= plan.num_steps:
        parts.append(f"the training has {plan.num_steps} steps now, so none is left")
    return f"warning: {'; '.join(parts)}"


def _num_examples(run: RunInfo) -> int | None:
    """The number of training examples of a run, from its data's identity; None if not recorded."""
    found = re.search(r"(\d+) examples", run.data or "")
    return int(found[1]) if found else None


def _order(run: RunInfo, num_examples: int) -> Order:
    return training_order(num_examples, run.config.data, seed=run.config.seed)


def _changed_code(experiment: Experiment) -> str | None:
    recorded, info = experiment.recorded, experiment.info
    if recorded is None or recorded.code == info.code:
        return None
    return (
        f"warning: the code of {info.config.model.name} has changed since the run began "
        f"({recorded.code} then, {info.code} now), so the result is that of neither"
    )


def _introduction(training: Training, state: TrainState, source: Source, start: int) -> str:
    config, data, devices = training.config, training.config.data, training.mesh.devices
    sizes = ", ".join(map(describe_size, training.steps))
    state_megabytes = bytes_per_device(state) / 1e6
    return (
        f"{'resuming after step ' + str(start) if start else 'training'}: {config.model.name} on "
        f"{source.name} ({len(source)} images, {source.num_classes} classes), "
        f"{training.plan.num_steps} steps of {data.batch_size} at {sizes} px, "
        f"{config.compute_dtype}, {devices.size} x {devices.flat[0].device_kind}, "
        f"state {config.parallel.state} ({state_megabytes:.1f} MB a device)"
    )
