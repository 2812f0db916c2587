"""The program `jaxcls`, also as `python -m jaxcls`."""

from __future__ import annotations

from jaxcls.signals import end_on_signals

TYPE_CHECKING = False  # as in jaxcls/__init__.py
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """Runs the command line of this process, and ends it."""
    end_on_signals()
    from jaxcls import cli  # not before: that takes half a second

    cli.run()


if __name__ == "__main__":
    run()
