"""What several commands share: CONFIG, --step, and their part in a job."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxcls.config import Config, DataConfig, check_data, decode, encode, load_config
from jaxcls.config.diff import default_workdir
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.distributed.job import JobOptions, join
from jaxcls.system.errors import UserError
from jaxcls.system.paths import RunPath, is_url, local_path, run_path

ALONE = JobOptions()
MOST_DIGITS = 18  # of a step's number


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks what no command takes, whatever the argument is for.

    Raises:
      UserError: an argument is empty, or holds a NUL character.
    """
    for number, argument in enumerate(arguments):
        before = " ".join(arguments[:number][-2:])
        if not argument:
            raise UserError(
                f"the argument after {before!r} is empty; give it a value, or leave the option out "
                f"(is a variable of the shell not set?)"
            )
        if "\0" in argument:
            raise UserError(f"{argument!r}: holds a NUL character, which nothing can be named by")


ClassNames = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FILE",
        help="Of weights that do not name their classes: a file that does, in their order; JSON, "
        "or one name a line.",
    ),
]
WeightsEma = Annotated[
    bool,
    tyro.conf.arg(
        help="Of another library's checkpoint that holds both, take the moving averages of the "
        "weights, and not the weights themselves."
    ),
]


def take_config(arguments: list[str], prog: str) -> tuple[str, Config, list[str]]:
    """What the first argument, CONFIG, is; the config in it; and the rest.

    Raises:
      UserError: nothing is named, or it holds no valid config.
    """
    name, rest = take_first(arguments, prog, "the config file", example="configs/digits.py")
    if name is None:
        return "CONFIG", Config(), rest
    return name, read_config(name), rest


def read_config(name: str) -> Config:
    """The config of a Python file, of a run, or of a JSON file such as a run's config.json.

    Raises:
      UserError: there is none, or it is not valid.
    """
    record = record_of(name)
    if record is None:
        return load_config(name)
    from jaxcls.runs.directory import config_of_record

    return config_of_record(record)


def is_config(name: str) -> bool:
    """Whether a name is rather CONFIG's than that of a data source."""
    if name.partition(":")[0] in ("digits", "tfds", "folder"):
        return False
    return name.endswith(".py") or record_of(name) is not None


def record_of(name: str) -> RunPath | None:
    """The JSON file that CONFIG means, if it is a run or such a file; None for a Python file."""
    path = run_path(name) if is_url(name) else local_path(name)
    if path.suffix == ".json":
        return path
    is_run = is_url(name) or (path / "config.json").is_file()
    return path / "config.json" if is_run else None


def workdir_of(name: str, pairs: Iterable[tuple[Config, Config]]) -> str:
    """Where the training of CONFIG lies unless the user says: in the run that it is, or in runs.

    Args:
      name: of CONFIG.
      pairs: as for `default_workdir`.
    """
    record = record_of(name)
    if record is None:
        return default_workdir(name, pairs)
    from jaxcls.runs.directory import recorded_run

    run = recorded_run(record)
    if run is not None:
        return str(run)
    named = record.parent if record.name == "config.json" else record
    return default_workdir(str(named), pairs)


def take_first(
    arguments: list[str], prog: str, what: str, *, example: str
) -> tuple[str | None, list[str]]:
    """The first argument, on which the defaults of the options depend, and the rest.

    Returns:
      None for the first argument where help is asked for.

    Raises:
      UserError: the first argument is missing, or an option.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        return None, arguments
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"usage: {prog} …: give {what} first, for example {example}")
    return arguments[0], arguments[1:]


def checked(config: Config) -> Config:
    """The config after overrides, through the same gate as one from a file."""
    return decode(encode(config))


def checked_data(data: DataConfig) -> DataConfig:
    """The fields of data after overrides, through the same gate."""
    data = checked(Config(data=data, num_steps=1)).data
    check_data(data)
    return data


def resolved(config: Config) -> Config:
    """The config after overrides, with what it leaves to the weights or the network filled in.

    Raises:
      UserError: a field is wrong, or there are no such weights or network.
    """
    from jaxcls.pretrained.resolve import resolve

    return resolve(checked(config))


def read_step(text: str) -> int | Literal["latest", "best"]:
    """The checkpoint that an option --step asks for.

    Raises:
      UserError: it is neither latest, best nor a number.
    """
    if text == "latest" or text == "best":
        return text
    if text.isdecimal() and len(text) <= MOST_DIGITS:
        return int(text)
    raise UserError(f"--step: expected latest, best or a step's number, got {text!r}")


def start_job(job: JobOptions, *, stops: bool = False, run: str | None = None) -> None:
    """What comes before a command computes: the job that it is part of, and JAX's cache.

    With `stops` the command has `StopSignals` for SIGTERM; else that ends it. `run` is the
    directory of its training.
    """
    join(job, stops=stops)
    require_devices()
    keep_compiled(run)


def require_devices() -> None:
    """Starts JAX's devices, before a command spends time on what needs them.

    Raises:
      UserError: as `all_devices`.
    """
    from jaxcls.distributed.mesh import all_devices

    all_devices()
