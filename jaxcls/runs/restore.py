"""Reads a run's checkpoint for anything but going on with its training."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxcls.models.efficientnet import EfficientNet
from jaxcls.models.registry import Variables, eval_variables_template, model_from_config
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.directory import RunInfo, checkpoint_dir, require_run
from jaxcls.system.paths import run_path

type Step = int | Literal["latest", "best"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoredRun:
    """A run's network at one step.

    Attributes:
      info: config and class names.
      model: the network.
      variables: {"params", "batch_stats"}, the moving averages where the training kept some.
      step: of the checkpoint.
    """

    info: RunInfo
    model: EfficientNet
    variables: Variables
    step: int


def restore_run(run: str | Path, *, step: Step = "latest") -> RestoredRun:
    """Restores a run's network; needs nothing but its directory.

    Args:
      run: directory of the run.
      step: "latest", "best" (by top-1 during training) or a step's number.

    Raises:
      UserError: no such run, no good checkpoint, or no such step.
    """
    with Checkpoints(checkpoint_dir(require_run(run_path(run)))) as checkpoints:
        info = RunInfo.from_json(checkpoints.metadata(step))
        model = model_from_config(info.config, num_classes=len(info.class_names))
        template = eval_variables_template(
            model,
            image_size=info.config.data.image_size,
            use_ema=info.config.optimizer.ema_decay > 0,
        )
        restored = checkpoints.restore(template, step, subset=True)
    return RestoredRun(
        info=info,
        model=model,
        variables=restored.state.get("ema") or restored.state,
        step=restored.step,
    )


def read_run_info(run: str | Path, *, step: Step = "latest") -> RunInfo:
    """What describes a run, as it was at one step; reads no arrays.

    Raises:
      UserError: no such run, no good checkpoint, or no such step.
    """
    with Checkpoints(checkpoint_dir(require_run(run_path(run)))) as checkpoints:
        return RunInfo.from_json(checkpoints.metadata(step))
