"""A run's metrics in Weights & Biases, through its own library (https://docs.wandb.ai)."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.errors import UserError
from jaxcls.paths import RunPath, write_whole

ID_FILE = "wandb_id.txt"  # of the run, so that a training that goes on does so there, too


class WandbRun:
    """One run of a project; process 0 of a job has it."""

    def __init__(
        self, project: str, run: RunPath, *, folder: Path, hyperparameters: Mapping[str, Any]
    ):
        """Begins the run, or goes on with it.

        Args:
          project: its name there.
          run: the directory of the training.
          folder: for the library's files.
          hyperparameters: what its table of runs shows.

        Raises:
          UserError: the library is missing, or refuses.
        """
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"wandb_project: {project!r} needs the package wandb; install the extra: "
                f"pip install 'jaxcls[wandb]'"
            ) from error
        self._image = wandb.Image
        try:
            self._run = wandb.init(
                project=project,
                id=_id_of(run),
                name=run.name,
                dir=folder,
                resume="allow",
                config=dict(hyperparameters),
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"wandb_project: Weights & Biases refuses {project!r} ({error}); log in with "
                f"`wandb login`, or set WANDB_MODE=offline"
            ) from error
        # Its own count of steps would drop those that a resumed run takes again.
        self._run.define_metric("*", step_metric="step")

    @property
    def url(self) -> str | None:
        """Where to look at it; None without a network."""
        return self._run.url

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes metrics after a step, by names such as eval/top1."""
        self._run.log({"step": step, **metrics})

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Notes images, uint8 [count, height, width, 3]."""
        self._run.log({"step": step, name: [self._image(image) for image in images]})

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and how the training ended."""
        self._run.finish(exit_code=int(failed))


def _id_of(run: RunPath) -> str:
    file = run / ID_FILE
    if not file.exists():
        write_whole(file, secrets.token_hex(8))
    return file.read_text().strip()
