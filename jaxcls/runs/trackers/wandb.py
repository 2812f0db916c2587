"""Sends metrics and images to Weights & Biases (https://docs.wandb.ai) through its own library."""

import contextlib
import functools
import importlib.util
import secrets
from collections.abc import Iterator, Mapping

import numpy as np

from jaxcls.config import Config
from jaxcls.runs.trackers.tracker import BeginTracker, TrackedRun
from jaxcls.system.errors import UserError
from jaxcls.system.paths import RunPath
from jaxcls.system.whole_files import write_whole

ID_FILE = "wandb_id.txt"  # in the run's directory, so that a resumed training continues there too


def how_to_begin(config: Config) -> BeginTracker | None:
    """How to begin a run in the project `wandb_project`; None if it is not set.

    Raises:
      UserError: the library is missing.
    """
    project = config.wandb_project
    if project is None:
        return None
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"wandb_project: {project!r} needs the package wandb; install the extra: "
            f"pip install 'jaxcls[wandb]'"
        )
    return functools.partial(WandbRun, project)


class WandbRun:
    """A run of a project in Weights & Biases; all methods may raise exceptions of its library."""

    def __init__(self, project: str, run: TrackedRun):
        """Begins or resumes the run `run` in a project, and prints its address."""
        import wandb

        self._wandb = wandb
        with self._teardown_on_error():
            self._run = wandb.init(
                project=project,
                id=_id_of(run.run),
                name=run.run.name,
                dir=run.folder,
                resume="allow",
                config=dict(run.hyperparameters),
                settings=wandb.Settings(console="off", silent=True),
            )
            # The library's own step counter would drop steps that a resumed run takes again.
            self._run.define_metric("*", step_metric="step")
        if not self._run.offline and self._run.url:  # offline, asking for the URL prints a warning
            run.say(f"metrics are also sent to {self._run.url}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends metrics after a training step, by names such as eval/top1."""
        self._run.log({"step": step, **metrics})

    def show(self, step: int, name: str, images: np.ndarray) -> None:
        """Sends images, uint8 [count, height, width, 3]."""
        self._run.log({"step": step, name: [self._wandb.Image(image) for image in images]})

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and whether the training failed."""
        with self._teardown_on_error():
            self._run.finish(exit_code=int(failed))

    @contextlib.contextmanager
    def _teardown_on_error(self) -> Iterator[None]:
        """After an error, shuts the library down; it would otherwise delay the program's end."""
        try:
            yield
        except Exception:
            with contextlib.suppress(Exception):
                self._wandb.teardown(exit_code=1)
            raise


def _id_of(run: RunPath) -> str:
    file = run / ID_FILE
    if not file.exists():
        write_whole(file, secrets.token_hex(8))
    return file.read_text().strip()
