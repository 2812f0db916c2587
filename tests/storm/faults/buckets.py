"""A run in a bucket whose server fails, is slow, or does not answer to the end."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from expect import require
from gcs_server import Handler, Store, serve
from process import STATUS_MISTAKE
from trial import FIRST_STEP, Storm, Trial

from faults.fault import Fault

_PREFIX = "run/"
_SECONDS = 180.0  # within which a training ends whose bucket fails
_GONE = 900.0  # gcsfs and TensorStore try each request again for a minute or so


class _Bucket(Store):
    """A store that counts its requests, and disturbs those after one of them for a while.

    Attributes:
      requests: how many there were.
      first: the number of the first request that is disturbed, from 1; 0 for none.
      seconds: for how long from then on.
      kind: what happens to them: a status, "reset", "cut" or "slow".
    """

    def __init__(self) -> None:
        super().__init__("bucket")
        self.requests = 0
        self.first, self.seconds = 0, 0.0
        self.kind: int | str = 503
        self._since: float | None = None
        self._counting = threading.Lock()

    def disturbs(self) -> bool:
        """Counts a request, and says whether it is disturbed."""
        with self._counting:
            self.requests += 1
            if not self.first or self.requests < self.first:
                return False
            self._since = self._since or time.monotonic()
            return time.monotonic() < self._since + self.seconds


class _Handler(Handler):
    store: Any  # a _Bucket
    _cutting = False

    def handle_any(self) -> None:
        kind = self.store.kind if self.store.disturbs() else None
        self._cutting = kind == "cut"
        if kind == "reset":
            self.close_connection = True
        elif isinstance(kind, int):
            self.read_body()
            self.fail(kind, "the storm")
        else:
            if kind == "slow":
                time.sleep(0.5)
            super().handle_any()

    def write_body(self, body: bytes) -> None:
        cut = self._cutting and len(body) > 1
        super().write_body(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815


def bucket_fails(trial: Trial) -> None:
    """For some seconds every request fails, in one of the ways in which servers do."""
    kinds: tuple[int | str, ...] = (503, 500, 429, "reset", "cut")
    _disturb(trial, kind=kinds[trial.number % len(kinds)], seconds=trial.rng.uniform(0.5, 5))


def bucket_slow(trial: Trial) -> None:
    """For some seconds every answer takes half a second longer."""
    _disturb(trial, kind="slow", seconds=trial.rng.uniform(5, 20))


def bucket_gone(trial: Trial) -> None:
    """From some request on the server answers no more; after the end of the training it does."""
    kinds: tuple[int | str, ...] = (503, 403, "reset")
    _disturb(trial, kind=kinds[trial.number % len(kinds)], seconds=float("inf"), within=_GONE)


def killed_in_a_bucket(trial: Trial) -> None:
    """kill -9 of a training whose run is in a bucket."""
    with _in_a_bucket(trial) as store:
        process = trial.start_one()
        process.wait_for(FIRST_STEP)
        time.sleep(trial.rng.uniform(0, 3))
        trial.hit = process.kill()
        _finish(trial, store)


def _disturb(trial: Trial, *, kind: int | str, seconds: float, within: float = _SECONDS) -> None:
    """Disturbs the server from a random request on, and resumes when it is well again."""
    requests = trial.storm.once("requests", lambda: _count_requests(trial.storm))
    with _in_a_bucket(trial) as store:
        store.first = trial.rng.randint(1, requests)
        store.kind, store.seconds = kind, seconds
        process = trial.start_one()
        status = process.wait(within=within)
        detail = f"request {store.first} of {requests}, {kind}: status {status}"
        require(status in (0, 1, STATUS_MISTAKE), detail)
        require(status == 0 or "gs://" in process.message(), f"{detail}: no message")
        trial.hit = store.requests >= store.first
        store.first = 0
        _finish(trial, store)


def _finish(trial: Trial, store: _Bucket) -> None:
    """Runs the training to its end, and compares a copy of the run with the twin."""
    trial.finish()
    for name, (data, _) in store.buckets["bucket"].items():
        path = trial.run_dir / name.removeprefix(_PREFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    trial.require_equal_to_twin()


def _count_requests(storm: Storm) -> int:
    """The number of requests of an undisturbed training."""
    folder = storm.new_folder("bucket") / "trial"
    with Trial(storm, folder, random.Random(0)) as trial, _in_a_bucket(trial) as store:
        trial.finish()
        return store.requests


@contextmanager
def _in_a_bucket(trial: Trial) -> Iterator[_Bucket]:
    """Inside the `with`, the run of a trial is in a bucket of its own."""
    store = _Bucket()
    with serve(store, handler=_Handler) as address:
        trial.workdir = f"gs://bucket/{_PREFIX.rstrip('/')}"
        trial.variables |= {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCE_METADATA_ROOT": "localhost:1",  # nobody there, so nobody waits
            "NO_GCE_CHECK": "true",
        }
        yield store


FAULTS = {
    "bucket-fails": Fault(inject=bucket_fails, trials=10, needs="gcsfs"),
    "bucket-slow": Fault(inject=bucket_slow, trials=3, needs="gcsfs"),
    "bucket-gone": Fault(inject=bucket_gone, trials=3, needs="gcsfs"),
    "killed-in-a-bucket": Fault(inject=killed_in_a_bucket, trials=5, needs="gcsfs"),
}
