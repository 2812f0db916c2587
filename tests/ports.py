"""An address for a job of several processes."""

import random
import socket

# Below those that a system hands to clients: another test's would take it before the job listens.
PORTS = range(20_000, 32_000)


def free_address() -> str:
    """HOST:PORT where nobody listens."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        try:
            with socket.create_server(("localhost", port)):
                return f"localhost:{port}"
        except OSError:
            continue
