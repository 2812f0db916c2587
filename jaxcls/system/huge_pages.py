"""Huge pages for the memory of this program, which make training on a CPU faster.

XLA takes gigabytes of memory for each step on a CPU, and gives them back after it. In pages of
4 kB, Linux must then prepare hundreds of thousands of pages in each step, which takes a third of
the processor's time. Linux can use pages of 2 MB instead; in its mode "madvise" it does so only for
memory whose program asks. glibc asks if an environment variable says so when the program starts.

This module imports as little as possible, because it is called before signals are handled.
"""

from __future__ import annotations

import os
import signal
import sys

from jaxcls.system.early_signals import SIGNALS

TYPE_CHECKING = False  # as in jaxcls/__init__.py
if TYPE_CHECKING:
    from collections.abc import Mapping

MODES = "/sys/kernel/mm/transparent_hugepage/enabled"
_VARIABLE = "GLIBC_TUNABLES"
_STARTED_AGAIN = "JAXCLS_STARTED_AGAIN"  # remains where the system removes the other variable
_TUNABLE = "glibc.malloc.hugetlb"
_OLDEST_GLIBC = (2, 35)  # with this tunable


def restart_with_huge_pages() -> None:
    """Starts this program again with huge pages, in the same process, if that helps.

    It does not if the program has been started with them, or if the user has chosen. A program that
    only calls this one is not started again.
    """
    if not is_the_command(sys.argv[0]):
        return
    try:
        with open(MODES) as file:
            modes = file.read()
        glibc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # no Linux, or no glibc
        return
    environment = environment_with_huge_pages(os.environ, modes=modes, glibc=glibc)
    if environment is not None:
        # A signal that comes while Python starts waits until `end_on_signals` handles it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
        except (OSError, ValueError):  # without huge pages, then
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_the_command(program: str) -> bool:
    """Whether a program (`sys.argv[0]`) is the script `jaxcls` or `python -m jaxcls`."""
    folder, name = os.path.split(program)
    is_module = name == "__main__.py" and os.path.basename(folder) == "jaxcls"
    return os.path.isfile(program) and (is_module or name == "jaxcls")


def environment_with_huge_pages(
    environment: Mapping[str, str], *, modes: str, glibc: str
) -> dict[str, str] | None:
    """The environment in which a program must start; None if no new start is needed or possible.

    Args:
      environment: the variables as they are.
      modes: the modes of Linux, with the one that is on in brackets: "always [madvise] never".
      glibc: the version of glibc, such as "glibc 2.36".
    """
    name, _, version = glibc.partition(" ")
    numbers = version.split(".")
    if name != "glibc" or not all(number.isdecimal() for number in numbers):
        return None
    if _STARTED_AGAIN in environment:
        return None
    tunables = environment.get(_VARIABLE, "")
    if tuple(map(int, numbers)) < _OLDEST_GLIBC or "[madvise]" not in modes or _TUNABLE in tunables:
        return None
    wanted = f"{_TUNABLE}=1"
    tunables = f"{tunables}:{wanted}" if tunables else wanted
    return {**environment, _VARIABLE: tunables, _STARTED_AGAIN: "1"}
