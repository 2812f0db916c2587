"""What becomes of epochs, and of the order of the data, when a run resumes with other fields."""

import re

from jaxcls.data.order import Order, steps_per_epoch, training_order
from jaxcls.runs.directory import RunInfo
from jaxcls.training.schedules import Plan


def epoch_warning(
    old: RunInfo | None, new: RunInfo, *, num_examples: int, step: int, plan: Plan
) -> str | None:
    """A warning if, from `step` on, epochs are counted or data ordered in another way than before.

    Both are functions of the step alone, so that a run may resume anywhere. After a change they are
    those of a run that had the new values from its start.

    Args:
      old: what the run has recorded (None: nothing).
      new: what it resumes with.
      num_examples: of the training data now.
      step: the last one that was taken.
      plan: of the training with the new values.
    """
    if old is None or step == 0:
        return None
    old_examples = _num_examples(old)
    old_examples = num_examples if old_examples is None else old_examples
    reordered = old.data != new.data if old.data is not None else False
    reordered |= _order(old, old_examples) != _order(new, num_examples)
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
        parts.append(f"the training has {plan.num_steps} steps now, of which none is left")
    return f"warning: {'; '.join(parts)}"


def _num_examples(run: RunInfo) -> int | None:
    """Of the training data of a run, as `Source.identity` tells it; None where it was not kept."""
    found = re.search(r"(\d+) examples", run.data or "")
    return int(found[1]) if found else None


def _order(run: RunInfo, num_examples: int) -> Order:
    return training_order(num_examples, run.config.data, seed=run.config.seed)
