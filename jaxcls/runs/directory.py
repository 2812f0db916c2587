"""A run's directory: what describes the run, and whether it may go on.

config.json    the whole config, class names and versions
checkpoints/   one folder a step
state.json     whether the run goes on, and how it ended
writer.N.json  who trains there, or did last, as the N-th process that began to (jaxcls/runs/claim.py)
log.txt        what was printed, and warnings such as images that were skipped
metrics.csv    one line a log interval
eval.json      the last `jaxcls evaluate`
events.*       TensorBoard
wandb_id.txt   with wandb_project, the run's id there; the folder wandb is that library's
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import platform
import secrets
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxcls.config import Config, changed_fields, decode, encode
from jaxcls.config.decoding import ConfigError, decode_fields, encode_fields
from jaxcls.distributed.agree import exchange, is_main_process, together
from jaxcls.distributed.job import JobError
from jaxcls.models.weights_info import WeightsInfo
from jaxcls.system.errors import UserError, shown
from jaxcls.system.names import composed, printable
from jaxcls.system.paths import RunPath, is_url
from jaxcls.system.shell import command, path_word
from jaxcls.system.version import VERSION
from jaxcls.system.whole_files import try_writing, write_whole

logger = logging.getLogger("jaxcls")

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "dm-pix",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
)


RECORD = "config.json"


class RunError(UserError):
    """A run directory that cannot be used; the message names it."""


class TakenOverError(RunError):
    """Another training writes to the run now, so this one must not any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What one needs to know to use a run's parameters.

    Attributes:
      config: the training's.
      class_names: in the order of the logits.
      data: which training data it was (`Source.identity`); None where that is not known.
      weights: of the weights that it started from, without class names; None if it started from
        random values.
    """

    config: Config
    class_names: tuple[str, ...]
    data: str | None = None
    weights: WeightsInfo | None = None

    def to_json(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {
            "config": encode(self.config),
            "class_names": list(self.class_names),
            "data": self.data,
            "weights": encode_fields(self.weights),
            "versions": {
                "jaxcls": VERSION,
                "python": platform.python_version(),
                **versions,
            },
        }

    @classmethod
    def from_json(cls, values: Any) -> "RunInfo":
        config, class_names = decode(values["config"]), tuple(map(printable, values["class_names"]))
        weights = values.get("weights")
        return cls(
            config=config,
            class_names=class_names,
            data=values.get("data"),
            weights=weights and decode_fields(WeightsInfo, weights, prefix="weights."),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunState:
    """How a run stands, as far as its process could tell.

    Attributes:
      state: running is also what a process that was killed leaves.
      num_steps: length of the whole training.
      why: what stopped it, or what it failed of; else empty.
    """

    state: Literal["running", "finished", "stopped", "failed"]
    num_steps: int
    why: str = ""


def checkpoint_dir(run: RunPath) -> RunPath:
    return run / "checkpoints"


def require_run(run: RunPath) -> RunPath:
    """Checks that a run directory is there to be read.

    Raises:
      RunError: it is missing, or not a run.
    """
    if is_url(run):
        _require_readable(run)
    try:
        if not run.is_dir():
            raise _missing(run)
        if not checkpoint_dir(run).is_dir():
            how = command("train", "CONFIG", "--workdir", path_word(str(run)))
            what = f"run {shown(run)!r} has no checkpoint"
            if not (run / RECORD).is_file():
                what = f"folder {shown(run)!r} holds no run, and so has no checkpoint"
            raise RunError(f"{what}; train one there with: {how}")
        next(iter(checkpoint_dir(run).iterdir()), None)
    except OSError as error:
        raise _not_readable(run, error) from error
    return run


def prepare_run(run: RunPath, info: RunInfo, *, allow_changes: bool) -> list[str]:
    """Makes the directory, or checks that the run in it is the same one. Records nothing yet.

    Returns:
      The fields that differ from the run's earlier start, as sentences; empty for a new run.

    Raises:
      RunError: the directory cannot be written, or fields that decide the result have changed and
        `allow_changes` is not set.
    """
    changes = changes_of(run, info, allow_changes=allow_changes)
    if is_url(run):
        _require_writable_bucket(run)
        return changes
    try:
        checkpoint_dir(run).mkdir(parents=True, exist_ok=True)
        for folder in (run, checkpoint_dir(run)):
            try_writing(folder / "trial")
        if (log := Path(run, "log.txt")).is_file():  # it is written on, where others are replaced
            log.open("a").close()
    except OSError as error:
        raise _not_writable(run, error) from error
    return changes


def changes_of(run: RunPath, info: RunInfo, *, allow_changes: bool) -> list[str]:
    """Checks that the run in a directory, if there is one, is the same one.

    Returns:
      As `prepare_run`.

    Raises:
      RunError: fields that decide the result have changed and `allow_changes` is not set.
    """
    changes: list[str] = []
    if (old := recorded_info(run)) is not None:
        changes = [
            f"{field}: {before!r} -> {after!r}"
            for field, (before, after) in changed_fields(old.config, info.config).items()
        ]
        if old.data is not None and old.data != info.data:
            changes.append(f"training data: {old.data!r} -> {info.data!r}")
        if list(map(composed, old.class_names)) != list(map(composed, info.class_names)):
            changes.append("class names of the data")
        if changes and not allow_changes:
            raise RunError(
                f"run {str(run)!r} was started with another config; changed:\n  "
                + "\n  ".join(changes)
                + "\nuse another --workdir, or --allow-changes to go on with the new values "
                "(the network and what the optimizer keeps must stay the same)"
            )
    return changes


def require_shared(run: RunPath) -> None:
    """Checks that all processes of a job see the same directory.

    Raises:
      JobError: one does not see what process 0 wrote there.
    """
    name = exchange(f".shared.{secrets.token_hex(8)}")[0]
    try:
        if is_main_process():
            (run / name).write_text("")
        exchange("written")
        with together():
            if not _appears(run / name):
                raise JobError(
                    f"run directory {str(run)!r} is not the one that process 0 writes to; give all "
                    f"processes a --workdir that they share, on a shared disk or in a bucket"
                )
    finally:
        if is_main_process():
            (run / name).unlink(missing_ok=True)


def _appears(path: RunPath) -> bool:
    """Whether a file is there, or comes within seconds; a network's disk may be late."""
    for _ in range(50):
        if path.exists():
            return True
        time.sleep(0.1)
    return False


def _require_readable(run: RunPath) -> None:
    """Asks a bucket for a list; `is_dir` says no to a forbidden one, too."""
    try:
        next(iter(run.iterdir()), None)
    except FileNotFoundError:
        return  # the bucket or the folder
    except Exception as error:  # the network's, the credentials' and the server's errors
        raise _not_readable(run, error) from error


def _require_writable_bucket(run: RunPath) -> None:
    try:
        try_writing(run / "trial")
    except Exception as error:  # the network's, the credentials' and the server's errors
        missing = "no such bucket; " if isinstance(error, FileNotFoundError) else ""
        raise RunError(
            f"run {str(run)!r} cannot be written ({missing}{_one_line(error)}); make the bucket, "
            f"get the right to list, read, write and delete its objects, or use another --workdir"
        ) from error


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or repr(error)
    return textwrap.shorten(reason, 300, placeholder=" …")


def record_run(run: RunPath, info: RunInfo) -> None:
    """Writes config.json, once it is sure that the run goes on with it.

    Raises:
      RunError: the directory cannot be written.
    """
    with writing(run):
        write_json(run / RECORD, info.to_json())


def record_state(run: RunPath, state: RunState) -> None:
    """Writes state.json, by the first process; a run goes on without it."""
    if is_main_process():
        with _recording:
            _write_state(run, state)


def record_early_stop(run: RunPath, stopped_by: str) -> None:
    """Notes that a training ends before it took a step, where state.json says that it goes on.

    The caller, any thread, then ends the process; nothing is recorded any more.
    """
    if not is_main_process():
        return
    _recording.acquire()  # for ever: the main thread may be about to note that the training runs
    state = recorded_state(run)
    if state is not None and state.state == "running":
        why = f"{stopped_by} before its first step"
        _write_state(run, dataclasses.replace(state, state="stopped", why=why))


_recording = threading.Lock()


def _write_state(run: RunPath, state: RunState) -> None:
    try:
        write_json(run / "state.json", dataclasses.asdict(state))
    except Exception as error:  # a bucket's come in many types
        logger.warning("state.json was not written in %s: %s", run, _one_line(error))


@contextlib.contextmanager
def recording_failure(run: RunPath, *, num_steps: int) -> Iterator[None]:
    """Notes in state.json that the run goes on, and what it fails of if it does."""
    record_state(run, RunState(state="running", num_steps=num_steps))
    try:
        yield
    except TakenOverError:
        raise  # state.json is the other training's
    except KeyboardInterrupt:  # of whoever calls `train` with a handler of SIGINT that raises it
        record_state(run, RunState(state="stopped", num_steps=num_steps, why="SIGINT"))
        raise
    except Exception as error:
        why = _one_line(error)
        record_state(run, RunState(state="failed", num_steps=num_steps, why=why))
        raise


def recorded_state(run: RunPath) -> RunState | None:
    """How a run stands; None where that is not known, as with runs of older versions."""
    try:
        return decode_fields(RunState, json.loads((run / "state.json").read_text()), prefix="")
    except (OSError, ValueError, TypeError):
        return None


def save_evaluation(run: RunPath, metrics: Mapping[str, float]) -> None:
    """Writes eval.json; a run that cannot be written can still be evaluated."""
    try:
        write_json(run / "eval.json", metrics)
    except Exception as error:  # a bucket's come in many types
        logger.warning("eval.json was not written in %s: %s", run, _one_line(error))


def write_json(path: RunPath, values: Any) -> None:
    """Writes the whole file or nothing."""
    write_whole(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def writing(run: RunPath) -> Iterator[None]:
    """Whatever fails inside fails because the directory cannot be written.

    Raises:
      RunError: in place of any error but a user's mistake.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a bucket's come in many types
        raise _not_writable(run, error) from error


def _not_readable(run: RunPath, error: Exception) -> RunError:
    return RunError(
        f"run {shown(run)!r} cannot be read: {_one_line(error)}; mend that, or name another"
    )


def _not_writable(run: RunPath, error: Exception) -> RunError:
    return RunError(
        f"run directory {shown(run)!r} cannot be written ({_one_line(error)}); use "
        f"another --workdir"
    )


def recorded_info(run: RunPath) -> RunInfo | None:
    """What describes the run in a directory; None where none was started yet.

    Raises:
      RunError: its record is damaged, or of another version.
    """
    if is_url(run):
        _require_readable(run)
    record = run / RECORD
    try:
        if not record.is_file():
            return None
        return RunInfo.from_json(json.loads(record.read_text()))
    except OSError as error:
        raise _not_readable(run, error) from error
    except ConfigError as error:
        raise RunError(f"{record}: {error}; use another --workdir") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{record} is damaged ({error}); use another --workdir") from error


def recorded_run(record: RunPath) -> RunPath | None:
    """The run that a file describes; None if it is no run's, but a copy or an export's."""
    run = record.parent
    return run if record.name == RECORD and checkpoint_dir(run).is_dir() else None


def config_of_record(record: RunPath) -> Config:
    """The config in a run's config.json, or in another JSON file that holds a config.

    Raises:
      RunError: the file is not there, cannot be read, holds no config, or one of another version.
    """
    if is_url(record):
        _require_readable(record.parent)
    try:
        values = json.loads(record.read_text())
    except FileNotFoundError as error:
        raise RunError(f"config file {str(record)!r} does not exist") from error
    except OSError as error:
        raise RunError(f"config file {str(record)!r}: {_one_line(error)}") from error
    except ValueError as error:
        raise RunError(f"config file {str(record)!r} is no JSON ({error})") from error
    try:
        return decode(values.get("config", values) if isinstance(values, Mapping) else values)
    except ConfigError as error:
        raise RunError(f"config file {str(record)!r}: {error}") from error


def recorded_config(run: RunPath) -> Config:
    """The config that a run was trained with.

    Raises:
      RunError: there is no such run, or its record is damaged.
    """
    info = recorded_info(run)
    if info is None:
        raise _missing(run)
    return info.config


def _missing(run: RunPath) -> RunError:
    return RunError(f"run {str(run)!r} does not exist; train it with: {command('train', 'CONFIG')}")
