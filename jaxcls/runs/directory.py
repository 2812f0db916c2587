"""The directory of a run: its record, and whether it can be resumed.

config.json      the whole config, class names and versions
checkpoints/     one folder per saved step
data_sha256.txt  with data.verify, the digests of the data's files (jaxcls/runs/data_digests.py)
state.json       whether the run is running, or how it ended (jaxcls/runs/run_state.py)
writer.N.json    the N-th process that wrote to the run, the current or last (jaxcls/runs/claim.py)
log.txt          the printed lines, and warnings such as images that were skipped
metrics.csv      one line per log interval
eval.json        the metrics of the last `jaxcls evaluate`
events.*         TensorBoard's files
wandb_id.txt     with wandb_project, the run's id there; the folder wandb belongs to its library
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxcls.config import Config, changed_fields, decode, encode
from jaxcls.config.decoding import ConfigError, decode_fields, encode_fields
from jaxcls.distributed.agree import exchange, is_main_process, shared_errors
from jaxcls.distributed.job import JobError
from jaxcls.models.weights_info import WeightsInfo
from jaxcls.system.errors import UserError, one_line, shown
from jaxcls.system.file_names import composed, printable
from jaxcls.system.json_text import parse_json
from jaxcls.system.paths import RunPath, is_url
from jaxcls.system.shell import command, path_word
from jaxcls.system.version import VERSION
from jaxcls.system.whole_files import random_name_beside, try_writing, write_whole

logger = logging.getLogger("jaxcls")

PACKAGES = (  # whose versions are recorded
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "dm-pix",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
)
CONFIG_FILE = "config.json"


class RunError(UserError):
    """A run directory that cannot be used; the message names it."""


class RunLostError(RunError):
    """The run no longer belongs to this training, which must write nothing more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The record of a run, which one needs to use its parameters.

    Attributes:
      config: the config of the training.
      class_names: the classes in the order of the logits.
      data: identifies the training data (`Source.identity`); None if unknown.
      weights: describes the weights that the training started from, without class names; None if
        it started from random values.
      code: identifies the code of a user's own network (`own_code.source_code`), without which
        the run cannot be used; None for jaxcls's networks.
      class_counts: the examples of each class in the training data; None if the training does not
        depend on them.
    """

    config: Config
    class_names: tuple[str, ...]
    data: str | None = None
    weights: WeightsInfo | None = None
    code: str | None = None
    class_counts: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {
            "config": encode(self.config),
            "class_names": list(self.class_names),
            "data": self.data,
            "weights": encode_fields(self.weights),
            "code": self.code,
            "class_counts": self.class_counts and list(self.class_counts),
            "versions": {
                "jaxcls": VERSION,
                "python": platform.python_version(),
                **versions,
            },
        }

    @classmethod
    def from_json(cls, values: Any, *, where: object = CONFIG_FILE) -> "RunInfo":
        """Reads what `to_json` returned.

        Args:
          values: JSON, perhaps damaged.
          where: the file that has it, for messages.

        Raises:
          RunError: the record is damaged or of another version.
        """
        try:
            weights, data, code = (values.get(name) for name in ("weights", "data", "code"))
            if not all(isinstance(text, str | None) for text in (data, code)):
                raise TypeError("data and code must be texts")
            counts = values.get("class_counts")
            if counts is not None and not all(type(count) is int for count in counts):
                raise TypeError("class_counts must be whole numbers")
            return cls(
                config=decode(values["config"]),
                class_names=tuple(map(printable, values["class_names"])),
                data=data,
                weights=weights and decode_fields(WeightsInfo, weights, prefix="weights."),
                code=code,
                class_counts=counts and tuple(counts),
            )
        except ConfigError as error:
            raise RunError(f"{where}: {error}; use another --workdir") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise RunError(f"{where} is damaged ({error}); use another --workdir") from error


def checkpoint_dir(run: RunPath) -> RunPath:
    return run / "checkpoints"


def require_run(run: RunPath) -> RunPath:
    """Checks that a directory contains a run that can be read; returns the directory.

    Raises:
      RunError: it is missing, is not a run, or cannot be read.
    """
    if is_url(run):
        _require_readable(run)
    try:
        if not run.is_dir():
            raise _missing(run)
        if (run / "weights.safetensors").is_file() and not checkpoint_dir(run).is_dir():
            raise RunError(
                f"folder {shown(run)!r} is an export, not a run; give its file weights.safetensors"
            )
        if not checkpoint_dir(run).is_dir():
            how = command("train", "CONFIG", "--workdir", path_word(str(run)))
            what = f"run {shown(run)!r} has no checkpoint"
            if not (run / CONFIG_FILE).is_file():
                what = f"folder {shown(run)!r} is not a run, so it has no checkpoint"
            raise RunError(f"{what}; train one there with: {how}")
        next(iter(checkpoint_dir(run).iterdir()), None)
    except OSError as error:
        raise not_readable(run, error) from error
    return run


def prepare_run(run: RunPath, info: RunInfo, *, allow_changes: bool) -> list[str]:
    """Creates the directory, or checks that it contains the same run. Writes no record yet.

    Args:
      run: the directory of the run.
      info: the record of the training that is about to start.
      allow_changes: whether fields that decide the result may differ from the existing run.

    Returns:
      The fields that differ from the existing run, as text; empty for a new run.

    Raises:
      RunError: the directory cannot be written, or fields differ without `allow_changes`.
    """
    changes = changes_of(run, info, allow_changes=allow_changes)
    if is_url(run):
        _require_writable_bucket(run)
        return changes
    try:
        checkpoint_dir(run).mkdir(parents=True, exist_ok=True)
        for folder in (run, checkpoint_dir(run)):
            try_writing(folder / "trial")
        if (
            log := Path(run, "log.txt")
        ).is_file():  # other files are replaced, this one is extended
            log.open("a").close()
    except OSError as error:
        raise _not_writable(run, error) from error
    return changes


def changes_of(run: RunPath, info: RunInfo, *, allow_changes: bool) -> list[str]:
    """Compares a training with the run in a directory, if there is one.

    Args and result are those of `prepare_run`.

    Raises:
      RunError: fields that decide the result differ, and `allow_changes` is not set.
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
                + "\nuse another --workdir, or --allow-changes to resume with the new values "
                "(the network and the optimizer's state must keep their shapes)"
            )
    return changes


def require_shared(run: RunPath) -> None:
    """Checks that all processes of a job see the same directory.

    Raises:
      JobError: one of them does not see a file that process 0 wrote there.
    """
    name = exchange(random_name_beside(run / "shared").name)[0]
    try:
        if is_main_process():
            (run / name).write_text("")
        exchange("written")
        with shared_errors():
            if not _appears(run / name):
                raise JobError(
                    f"run directory {str(run)!r} is not the one that process 0 writes to; give all "
                    f"processes the same --workdir, on a shared disk or in a bucket"
                )
    finally:
        if is_main_process():
            (run / name).unlink(missing_ok=True)


def _appears(path: RunPath) -> bool:
    """Whether a file exists or appears within five seconds, because network disks may be late."""
    for _ in range(50):
        if path.exists():
            return True
        time.sleep(0.1)
    return False


def _require_readable(run: RunPath) -> None:
    """Lists a folder in a bucket, because `is_dir` is also False if access is forbidden."""
    try:
        next(iter(run.iterdir()), None)
    except FileNotFoundError:  # there is no such bucket or folder
        return
    except Exception as error:  # the network's, the credentials' and the server's errors
        raise not_readable(run, error) from error


def _require_writable_bucket(run: RunPath) -> None:
    try:
        try_writing(run / "trial")
    except Exception as error:  # the network's, the credentials' and the server's errors
        missing = "no such bucket; " if isinstance(error, FileNotFoundError) else ""
        raise RunError(
            f"run {str(run)!r} cannot be written ({missing}{one_line(error)}); create the bucket, "
            f"get the right to list, read, write and delete its objects, or use another --workdir"
        ) from error


def record_run(run: RunPath, info: RunInfo) -> None:
    """Writes config.json. Call it only when the training is certain to continue with this record.

    Raises:
      RunError: the directory cannot be written.
    """
    with writing(run):
        write_json(run / CONFIG_FILE, info.to_json())


def save_evaluation(run: RunPath, metrics: Mapping[str, float]) -> None:
    """Writes eval.json; if that fails, only warns, because the evaluation itself is done."""
    try:
        write_json(run / "eval.json", metrics)
    except Exception as error:  # errors of a bucket have many types
        logger.warning("cannot write eval.json in %s: %s", run, one_line(error))


def write_json(path: RunPath, values: Any) -> None:
    """Writes a JSON file, completely or not at all."""
    write_whole(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def writing(run: RunPath) -> Iterator[None]:
    """Reports errors inside the `with` as "cannot be written".

    Raises:
      RunError: for any error that is not a `UserError` already.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # errors of a bucket have many types
        raise _not_writable(run, error) from error


def not_readable(run: RunPath, error: Exception) -> RunError:
    return RunError(
        f"run {shown(run)!r} cannot be read: {one_line(error)}; correct this, or use another run"
    )


def _not_writable(run: RunPath, error: Exception) -> RunError:
    return RunError(
        f"run directory {shown(run)!r} cannot be written ({one_line(error)}); use another --workdir"
    )


def recorded_info(run: RunPath) -> RunInfo | None:
    """Reads the record of the run in a directory; None if no run was started there.

    Raises:
      RunError: the record is damaged or of another version, or cannot be read.
    """
    if is_url(run):
        _require_readable(run)
    record = run / CONFIG_FILE
    try:
        if not record.exists():
            return None
        values = parse_json(record.read_text())
    except IsADirectoryError as error:
        raise RunError(f"{record} is a folder; move it away, or use another --workdir") from error
    except OSError as error:
        raise not_readable(run, error) from error
    except ValueError as error:
        raise RunError(f"{record} is damaged ({error}); use another --workdir") from error
    return RunInfo.from_json(values, where=record)


def recorded_run(record: RunPath) -> RunPath | None:
    """The run whose record a file is; None if it is a copy, or was exported."""
    run = record.parent
    return run if record.name == CONFIG_FILE and checkpoint_dir(run).is_dir() else None


def config_of_record(record: RunPath) -> Config:
    """Reads the config in a run's config.json, or in another JSON file with a config.

    Raises:
      RunError: the file is missing, cannot be read, or has no config that this version can read.
    """
    if is_url(record):
        _require_readable(record.parent)
    try:
        values = parse_json(record.read_text())
    except FileNotFoundError as error:
        raise RunError(f"config file {str(record)!r} does not exist") from error
    except OSError as error:
        raise RunError(f"config file {str(record)!r}: {one_line(error)}") from error
    except ValueError as error:
        raise RunError(f"config file {str(record)!r} is not JSON ({error})") from error
    try:
        return decode(values.get("config", values) if isinstance(values, Mapping) else values)
    except ConfigError as error:
        raise RunError(f"config file {str(record)!r}: {error}") from error


def recorded_config(run: RunPath) -> Config:
    """Reads the config of a run.

    Raises:
      RunError: there is no such run, or its record is damaged.
    """
    info = recorded_info(run)
    if info is None:
        raise _missing(run)
    return info.config


def _missing(run: RunPath) -> RunError:
    return RunError(f"run {str(run)!r} does not exist; train it with: {command('train', 'CONFIG')}")
