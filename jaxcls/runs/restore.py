"""Loads a run's network for evaluation, prediction, export or fine-tuning."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxcls.models.interface import Network, PyTree, Variables
from jaxcls.models.own_code import warn_of_changed_code
from jaxcls.models.registry import eval_variables_template, model_from_config
from jaxcls.runs.checkpoint import Checkpoints
from jaxcls.runs.directory import RunInfo, checkpoint_dir, require_run
from jaxcls.system.paths import run_path

type Step = int | Literal["latest", "best"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoredRun:
    """A run's network at one step.

    Attributes:
      info: the config and class names of the run.
      model: the network.
      variables: {"params", "batch_stats"}; their moving averages if the training kept them.
      step: the training step that was restored.
    """

    info: RunInfo
    model: Network
    variables: Variables
    step: int


def restore_run(run: str | Path, *, step: Step = "latest") -> RestoredRun:
    """Restores a run's network; needs only the run's directory.

    Args:
      run: the directory of the run.
      step: the training step to restore: "latest", "best" (by top-1 during training) or a number.

    Raises:
      UserError: there is no such run, no good checkpoint, or no such step.
    """
    with Checkpoints(checkpoint_dir(require_run(run_path(run)))) as checkpoints:
        where = _place(checkpoints, step)

        # After a fallback it is the config of the step that is good.
        def template(metadata: Mapping[str, Any]) -> PyTree:
            info = RunInfo.from_json(metadata, where=where)
            warn_of_changed_code(info.config.model.name, info.code)
            return eval_variables_template(
                _model(info),
                image_size=info.config.data.image_size,
                use_ema=info.config.optimizer.ema_decay > 0,
            )

        restored = checkpoints.restore(template, step, subset=True)
    info = RunInfo.from_json(restored.metadata, where=where)
    return RestoredRun(
        info=info,
        model=_model(info),
        variables=restored.state.get("ema") or restored.state,
        step=restored.step,
    )


def read_run_info(run: str | Path, *, step: Step = "latest") -> RunInfo:
    """Reads the config and class names of a run at one step; raises as `restore_run`."""
    with Checkpoints(checkpoint_dir(require_run(run_path(run)))) as checkpoints:
        return RunInfo.from_json(checkpoints.metadata(step), where=_place(checkpoints, step))


def _place(checkpoints: Checkpoints, step: Step) -> str:
    return f"the record in checkpoint {step!r} of {checkpoints.directory}"


def _model(info: RunInfo) -> Network:
    return model_from_config(info.config, num_classes=len(info.class_names))
