"""A bucket that takes no uploads."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, gc, os
import gcs_server

class Handler(gcs_server.Handler):
    def handle_any(self):
        if self.command in ("POST", "PUT") and "uploadType=resumable" not in self.path:
            self.read_body()
            self.fail(503, "busy")
        else:
            super().handle_any()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

with gcs_server.serve(gcs_server.Store("bucket"), handler=Handler) as address:
    os.environ.update(
        STORAGE_EMULATOR_HOST=address, GCE_METADATA_ROOT="localhost:1", NO_GCE_CHECK="true"
    )
    from jaxcls.system.paths import run_path

    run = run_path("gs://bucket/run")
    import gcsfs.retry

    sleep = asyncio.sleep
    gcsfs.retry.asyncio.sleep = lambda seconds: sleep(0)  # tries again at once
    for number in range(2):
        try:
            (run / f"{number}").write_bytes(bytes(100_000))
        except Exception as error:
            print(error)
        gc.collect()
"""


def test_a_failed_upload_is_an_error_and_no_crash() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["busy, 503"] * 2
    assert "SystemError" not in done.stderr
