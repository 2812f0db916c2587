"""Starts a job of several processes on this machine.

    python launch/local.py -n 4 -- jaxcls train configs/digits.py

Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which `jaxcls
train`, `evaluate` and `predict` read; a GPU of its own if the machine has GPUs; and on a CPU as
many devices as --devices says. Signals are sent to all processes. The exit status is 0 if all end
with 0, 75 if the job was stopped and the same command resumes it, and otherwise the status of the
first process that failed. The output of the processes is printed to standard error; if the reader
goes away, the output is dropped and the job continues (--log-dir keeps it).
"""

import argparse
import contextlib
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

STOPPED = 75
USER_ERROR = 2
GRACE_SECONDS = 90  # after a failure, for the other processes to name the failed one and end
READER_SECONDS = 30  # the job waits this long, once, for a reader that does not read


def main(arguments: Sequence[str]) -> int:
    open_standard_files()
    os.umask(os.umask(0o077) | 0o002)  # not every user may change the logs
    options = parse(arguments)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: signals.append(number))
    for attempt in range(options.restart + 1):
        status = run(options, signals)
        if status in (0, USER_ERROR) or signals or attempt == options.restart:
            return status
        STDERR.say(f"the job ended with status {status}; starting it again")
    raise AssertionError("the last attempt returns")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, required=True, metavar="N", help="processes to start")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices a process (default 1)")
    parser.add_argument("--log-dir", type=folder, help="also write what process N prints to N.log")
    parser.add_argument(
        "--restart", type=int, default=0, help="times to start all again after a crash or a stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and end")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what each process runs")
    options = parser.parse_args(arguments)
    if options.n < 1 or options.devices < 1 or options.restart < 0:
        parser.error("-n and --devices must be at least 1, --restart at least 0")
    return options


def folder(text: str) -> Path:
    """A path of a folder; replaces ~, because a shell does not do so in --log-dir=~/logs."""
    if not text:
        raise argparse.ArgumentTypeError("give a folder")
    return Path(os.path.expanduser(text))


def run(options: argparse.Namespace, signals: list[int]) -> int:
    """Runs the job once and returns its exit status."""
    settings = environments(options.n, options.devices)
    if options.dry_run:
        for own in settings:
            words = [f"{name}={value}" for name, value in own.items()]
            STDOUT.say(shlex.join(["env", *words, *options.command]))
        return 0
    processes: list[subprocess.Popen[bytes]] = []
    readers = []
    for number, own in enumerate(settings):
        try:
            process = subprocess.Popen(
                options.command,
                env=os.environ | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches them only through this program
            )
        except OSError as error:
            STDERR.say(f"local.py: cannot run {options.command[0]!r}: {error.strerror}")
            end(processes)
            return USER_ERROR
        processes.append(process)
        assert process.stdout is not None
        reader = threading.Thread(target=show, args=(number, process.stdout, options.log_dir))
        reader.start()
        readers.append(reader)
    status = wait(processes, signals)
    end(processes)
    for reader in readers:
        reader.join()
    return status


def environments(count: int, devices: int) -> list[dict[str, str]]:
    """The environment variables of each process."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    gpus = visible_gpus()
    if gpus and len(gpus) < count:
        raise SystemExit(f"local.py: -n {count}: this machine has {len(gpus)} GPUs, one a process")
    flags = os.environ.get("XLA_FLAGS", "")
    return [
        {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
            **({"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {}),
        }
        for number in range(count)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that may be used, by their names in CUDA_VISIBLE_DEVICES."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


class Printer:
    """Writes to an open file; drops what cannot be written."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Lock()
        self._dropping = False

    def say(self, text: str) -> None:
        """Prints a line."""
        self.write(os.fsencode(f"{text}\n"))

    def write(self, content: bytes) -> None:
        """Writes bytes; waits once for a reader that does not read."""
        with self._lock:
            try:
                while content:
                    patience = 0 if self._dropping else READER_SECONDS
                    if not select.select([], [self._number], [], patience)[1]:
                        raise TimeoutError
                    with contextlib.suppress(BlockingIOError):
                        content = content[os.write(self._number, content[: select.PIPE_BUF]) :]
                self._dropping = False
            except OSError:
                self._dropping = True


STDOUT, STDERR = Printer(1), Printer(2)


def open_standard_files() -> None:
    """Opens the null device for each closed one, whose number another file would get otherwise."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def show(number: int, stream: IO[bytes], log_dir: Path | None) -> None:
    """Prints each line of a process after the number of the process, until it ends."""
    with contextlib.ExitStack() as stack:
        log = None if log_dir is None else stack.enter_context(Log(log_dir / f"{number}.log"))
        for line in stream:
            if log is not None:
                log.write(line)
            STDERR.write(b"[%d] " % number + line)


class Log:
    """A file for the output of a process; reports once if it cannot be written."""

    def __init__(self, path: Path):
        self._path = path
        self._file: IO[bytes] | None = None
        self._reported = False

    def __enter__(self) -> "Log":
        with self._reporting():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb", buffering=0)
        return self

    def write(self, line: bytes) -> None:
        with self._reporting():
            if self._file is not None:
                self._file.write(line)

    def __exit__(self, *_: object) -> None:
        with self._reporting():
            if self._file is not None:
                self._file.close()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._reported:
                self._reported = True
                STDERR.say(f"local.py: {self._path} cannot be written: {error.strerror}")


def wait(processes: list[subprocess.Popen[bytes]], signals: list[int]) -> int:
    """Waits for the processes, forwards signals; kills all GRACE_SECONDS after one has failed."""
    forwarded, failed_at, status = 0, None, 0
    while None in [process.poll() for process in processes]:  # polls all of them
        for number in signals[forwarded:]:
            forwarded += 1
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
        bad = [p.returncode for p in processes if p.returncode not in (None, 0, STOPPED)]
        if bad and failed_at is None:
            failed_at, status = time.monotonic(), bad[0]
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            end(processes)
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    bad = [code for code in codes if code not in (0, STOPPED)]
    status = status or (bad[0] if bad else max(codes))
    return 128 - status if status < 0 else status  # for a signal, the status that a shell reports


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kills the processes and their children, which would keep the output open."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
