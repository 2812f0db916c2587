"""Helpers of several commands: the argument CONFIG, the option --step, and joining a job."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxcls.commands.options import parse
from jaxcls.config import (
    Config,
    DataConfig,
    LossConfig,
    check_data,
    decode,
    encode,
    load_config,
)
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.distributed.job import JobOptions, join
from jaxcls.system.errors import UserError
from jaxcls.system.paths import RunPath, is_url, local_path, run_path

DEFAULT_JOB = JobOptions()
MAX_STEP_DIGITS = 18


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks that no argument of a command is empty or contains a NUL character.

    Raises:
      UserError: one is or does.
    """
    for number, argument in enumerate(arguments):
        before = " ".join(arguments[:number][-2:])
        if not argument:
            raise UserError(
                f"the argument after {before!r} is empty; give it a value, or leave the option out "
                f"(perhaps a variable of the shell is not set)"
            )
        if "\0" in argument:
            raise UserError(f"{argument!r}: contains a NUL character, which no name can contain")


ClassNames = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FILE",
        help="File with the names of the classes in their order, if the weights do not have them; "
        "JSON, or one name per line.",
    ),
]
WeightsEma = Annotated[
    bool,
    tyro.conf.arg(
        help="If a checkpoint of another library has both the weights and their moving averages, "
        "use the averages."
    ),
]


def parse_with_config[T](kind: type[T], prog: str, arguments: list[str]) -> T:
    """Reads CONFIG and the options after it, whose defaults depend on it.

    Args:
      kind: a dataclass of the options, with a field `config`.
      prog: the name of the command in its help, such as "jaxcls train CONFIG".
      arguments: the arguments of the command.

    Returns:
      The options. Their config has the changes of the command line, but is not checked yet.

    Raises:
      UserError: CONFIG is missing or not valid; or as `parse`.
    """
    _, config, rest = take_config(arguments, prog)
    fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    required = {
        field.name: tyro.MISSING
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return parse(kind, prog, rest, default=kind(**(required | {"config": config})))


def take_config(arguments: list[str], prog: str) -> tuple[str, Config, list[str]]:
    """Takes the first argument, CONFIG, from the arguments.

    Returns:
      CONFIG, the config that it names, and the other arguments.

    Raises:
      UserError: CONFIG is missing or not valid.
    """
    name, rest = take_first(arguments, prog, "the config file", example="configs/digits.py")
    if name is None:
        return "CONFIG", Config(), rest
    return name, load_file_or_run(name), rest


def load_file_or_run(name: str) -> Config:
    """Loads the config of a Python file, of a run, or of a JSON file such as a run's config.json.

    Raises:
      UserError: there is no such config, or it is not valid.
    """
    record = record_of(name)
    if record is None:
        return load_config(name)
    from jaxcls.runs.directory import config_of_record

    return config_of_record(record)


def is_config(name: str) -> bool:
    """Whether an argument names a CONFIG, and not a data source."""
    from jaxcls.data.sources import KINDS

    if name.partition(":")[0] in KINDS:
        return False
    return name.endswith(".py") or record_of(name) is not None


def record_of(name: str) -> RunPath | None:
    """The JSON file with the config, if CONFIG is a run or a JSON file; None for a Python file."""
    path = run_path(name) if is_url(name) else local_path(name)
    if path.suffix == ".json":
        return path
    is_run = is_url(name) or (path / "config.json").is_file()
    return path / "config.json" if is_run else None


def take_first(
    arguments: list[str], prog: str, what: str, *, example: str
) -> tuple[str | None, list[str]]:
    """Splits the arguments into the first one, which decides the options' defaults, and the rest.

    Returns:
      The first argument, or None if it asks for help; and the rest.

    Raises:
      UserError: the first argument is missing or is an option.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        return None, arguments
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"usage: {prog} …: give {what} first, for example {example}")
    return arguments[0], arguments[1:]


def validate(config: Config) -> Config:
    """Checks a config that the command line may have changed, as strictly as one from a file."""
    return decode(encode(config))


def validate_data(data: DataConfig) -> DataConfig:
    """Checks the fields of data that the command line may have changed."""
    # The loss is that of the network; this one only has to fit the labels.
    loss = LossConfig(name="sigmoid" if data.labels == "multiple" else "softmax")
    data = validate(Config(data=data, loss=loss, num_steps=1)).data
    check_data(data)
    return data


def validate_and_resolve(config: Config) -> Config:
    """Checks a config, and fills in the fields that it leaves to the weights or the network.

    Raises:
      UserError: a field is wrong, or there are no such weights or no such network.
    """
    from jaxcls.pretrained.resolve import resolve

    return resolve(validate(config))


def read_step(text: str) -> int | Literal["latest", "best"]:
    """Reads the value of an option --step.

    Raises:
      UserError: it is neither latest, best nor a number.
    """
    if text == "latest" or text == "best":
        return text
    if text.isdecimal() and len(text) <= MAX_STEP_DIGITS:
        return int(text)
    raise UserError(f"--step: expected latest, best or the number of a step, got {text!r}")


def start_job(job: JobOptions, *, stops: bool = False, run: str | None = None) -> None:
    """Joins the job, starts the devices and turns the compile cache on.

    Args:
      job: the place of this process in a job.
      stops: whether the command handles SIGTERM with `StopSignals`; otherwise SIGTERM ends it.
      run: the directory of the run that the command trains, if any.
    """
    join(job, stops=stops)
    require_devices()
    keep_compiled(run)


def require_devices() -> None:
    """Starts JAX's devices, so that a command fails early if there are none.

    Raises:
      UserError: as `all_devices`.
    """
    from jaxcls.distributed.mesh import all_devices

    all_devices()
