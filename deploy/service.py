"""The two programs as a user runs them, for the demonstrations: training, and a server.

Settings come from the environment that those programs read, and from flags.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_repository import versions
from serving.client import Client

READY_TIMEOUT = 180.0  # seconds; many models on a busy machine take long, a death is seen at once


def train(repository: Path, models: tuple[str, ...], classes: str, *more: str) -> None:
    """Publish a version of each of the models. Raises CalledProcessError."""
    command = [sys.executable, "-m", "training", "--classes", classes]
    command += ["--models", ",".join(models), "--model-repository", str(repository), *more]
    subprocess.run(command, check=True)


def latest(repository: Path, name: str) -> Path:
    """The directory of a published model's newest version."""
    return repository / name / str(versions(repository / name)[-1])


def bypass_proxy() -> None:
    """What runs here is asked directly, by gRPC and HTTP, also where http_proxy names a proxy."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, (excepted, "localhost", "127.0.0.1")))


def grpc_address() -> str:
    """Where the server answers."""
    return f"localhost:{os.environ.get('DIGITS_GRPC_PORT', '8001')}"


def http_address() -> str:
    """Where its page is."""
    return f"localhost:{os.environ.get('DIGITS_HTTP_PORT', '8000')}"


def metrics_address() -> str:
    """Where it is scraped."""
    return f"localhost:{os.environ.get('DIGITS_METRICS_PORT', '8002')}"


@contextmanager
def server(repository: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, once it is ready; it is drained with SIGTERM when left. RuntimeError."""
    command = [sys.executable, "-m", "serving", "--model-repository", str(repository), *flags]
    address = grpc_address()
    with Client(address) as client:
        if client.ready(timeout=1.0):
            raise RuntimeError(f"another server answers on {address}; set DIGITS_GRPC_PORT")
    process = subprocess.Popen(command)
    try:
        _wait_until_ready(process, address)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_interrupted(process: subprocess.Popen[bytes]) -> None:
    """Let it run until Ctrl-C, which all that runs in the same terminal hears too."""
    with suppress(KeyboardInterrupt):
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + READY_TIMEOUT
    with Client(address) as client:
        while not client.ready():
            if process.poll() is not None:
                raise RuntimeError("the server did not start; its message is above")
            if time.monotonic() > end:
                raise RuntimeError(f"the server was not ready within {READY_TIMEOUT:.0f} s")
            time.sleep(0.1)
