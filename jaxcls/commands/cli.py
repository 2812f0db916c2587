"""The command line: runs a command, and prints a user's mistakes as messages.

A command is a file in `jaxcls.commands` with a function `run`. It is imported only when it is used,
so that help is quick.
"""

import contextlib
import functools
import importlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from jaxcls.commands.common import check_arguments
from jaxcls.config.decoding import nearest
from jaxcls.distributed.job import (
    EXIT_FAILED,
    EXIT_USER_ERROR,
    joined,
    leave,
    lost_connection,
)
from jaxcls.system.early_signals import work_is_done
from jaxcls.system.errors import UserError, mistake_behind, one_line
from jaxcls.system.output import PublicFormatter, require_printed, say
from jaxcls.system.version import VERSION

USAGE = """\
usage: jaxcls COMMAND ...

  jaxcls train CONFIG [--workdir DIR] [--field.sub VALUE ...]   train, or resume a run
  jaxcls sweep CONFIG [--index N] [--list] [--workdir DIR]      train the variations of a config
  jaxcls runs [DIR] [--diff RUN RUN] [--json]                   table of runs and their differences
  jaxcls evaluate MODEL [--step latest|best|N] [--split NAME]   loss and accuracy
  jaxcls evaluate MODEL --per-class --predictions FILE.csv      per class, and per example
  jaxcls predict MODEL IMAGE ... [--top 5] [--format table]     classes of image files
  jaxcls export RUN -o DIR [--step latest|best|N]               a program and weights for serving
  jaxcls presets [PART] [--json]                                table of published weights by name
  jaxcls convert WEIGHTS -o FILE.safetensors [--model NAME]     other weights to jaxcls' format
  jaxcls prepare SOURCE [--data-dir DIR]                        download and prepare a data set
  jaxcls data CONFIG [--json]                                   content of the data, reading speed
  jaxcls show augment CONFIG -o FILE.png                        training images after augmentation
  jaxcls show data CONFIG -o FILE.png                           raw training images with labels
  jaxcls show run RUN ... -o FILE.png                           curves of runs, confusion matrix
  jaxcls show schedule CONFIG -o FILE.png                       the learning rate over the training
  jaxcls benchmark CONFIG [--json]                              speed, and where the time is spent
  jaxcls compile CONFIG [--topology v5e:4x4|h200:8] [--search]  whether a training fits into memory

CONFIG is a Python file that defines get_config(), or the directory of a run. MODEL and WEIGHTS are
the directory of a run, a preset such as efficientnet_lite0_imagenet, a weights file, or
hf:OWNER/REPO on the Hugging Face Hub.
`jaxcls COMMAND --help` explains every option and every field of the config with its default.
"""

COMMANDS = (
    "train",
    "sweep",
    "runs",
    "evaluate",
    "predict",
    "export",
    "presets",
    "convert",
    "prepare",
    "data",
    "show",
    "benchmark",
    "compile",
)
OUTPUT_IS_OPTIONAL = ("train", "sweep")  # they succeed even if their output cannot be written


class Ending:
    """The exit status of the command."""

    status = EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with ending(arguments) as end:
        end.status = find_command(arguments)()
    return end.status


@contextlib.contextmanager
def ending(arguments: Sequence[str]) -> Iterator[Ending]:
    """Turns a user's mistake inside the `with` into a message and status 2; then leaves the job."""
    handler = logging.StreamHandler()
    handler.setFormatter(PublicFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    end = Ending()
    try:
        yield end
        if arguments and arguments[0] not in OUTPUT_IS_OPTIONAL:
            require_printed()
    except Exception as error:
        if (mistake := mistake_behind(error)) is not None:
            say(f"jaxcls: {mistake}", sys.stderr)
            end.status = EXIT_USER_ERROR
        elif not joined():
            raise
        elif lost_connection(error):
            say(f"jaxcls: another process of the job is gone: {one_line(error)}", sys.stderr)
            end.status = EXIT_FAILED
        else:
            say_fault(error)
            end.status = EXIT_FAILED
    work_is_done(end.status)
    end.status = leave(end.status)


def say_fault(error: BaseException) -> None:
    """Prints the traceback of a fault of ours; its message may quote files and addresses."""
    say("".join(traceback.format_exception(error)).rstrip("\n"), sys.stderr)


def say_fault_in_thread(ended: threading.ExceptHookArgs) -> None:
    """Does the same for a thread that an exception ends; for `threading.excepthook`."""
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = ended.thread.name if ended.thread else "unknown"
        say(f"Exception in thread {name}:", sys.stderr)
        say_fault(ended.exc_value)


def find_command(arguments: list[str]) -> Callable[[], int]:
    """Finds the command in the arguments; the result runs it and returns the exit status.

    Raises:
      UserError: there is no such command, or an argument is empty or has a NUL character.
    """
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return functools.partial(_print, USAGE, 0 if arguments else EXIT_USER_ERROR)
    if arguments[0] == "--version":
        return functools.partial(_print, f"{VERSION}\n", 0)
    check_arguments(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}\n\n{USAGE}")
    return functools.partial(importlib.import_module(f"jaxcls.commands.{name}").run, rest)


def _print(text: str, status: int) -> int:
    say(text.rstrip("\n"))
    return status
