"""The program `jaxcls`, also as `python -m jaxcls`."""

from __future__ import annotations

import sys

from jaxcls.system.early_signals import end_on_signals
from jaxcls.system.huge_pages import restart_with_huge_pages

TYPE_CHECKING = False  # as in jaxcls/__init__.py
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """Runs the command line of this process, and ends the process."""
    restart_with_huge_pages()
    end_on_signals()
    import threading

    from jaxcls.commands import cli  # imported after signals are handled: it takes half a second
    from jaxcls.distributed.job import EXIT_FAILED, end_with
    from jaxcls.system.output import protect_output
    from jaxcls.system.permissions import restrict_umask

    restrict_umask()
    protect_output()
    threading.excepthook = cli.say_fault_in_thread
    arguments = sys.argv[1:]
    try:
        with cli.ending(arguments) as end:
            end.status = cli.find_command(arguments)()
    except Exception as error:  # a fault of ours, after which threads may wait without end
        cli.say_fault(error)
        end_with(EXIT_FAILED)
    end_with(end.status)


if __name__ == "__main__":
    run()
