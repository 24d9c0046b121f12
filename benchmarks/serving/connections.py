"""What connections cost in memory: many that are idle, and many that ask one image at a time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from benchmarks.serving import h2load, http2
from benchmarks.serving.compare import progress
from benchmarks.serving.contestants import Ours, digits
from benchmarks.serving.models import load_model
from benchmarks.serving.peers import BUILT_IN
from benchmarks.serving.process import Cores
from benchmarks.serving.session import Session, started

MODEL = "linear"  # and nothing else is loaded: models are not what is measured
IDLE, BUSY = 2000, 500
_LOOK = 0.1  # seconds between two looks at the server's memory
_TIMEOUT = 30.0  # seconds for a server to greet a connection


def connections(
    ours: Ours, cores: Cores, seconds: float, save: Callable[[dict[str, Any]], None]
) -> None:
    """RSS without connections, with those that are idle, and the most while the others ask."""
    only = (*ours.options, "--model-control-mode", "explicit", "--load-model", MODEL)
    only += ("--max-queue-size", str(IDLE + BUSY))  # room for a request of each that asks
    ours = replace(ours, options=only)
    model = load_model(ours.repository, MODEL, "fp32")
    found: dict[str, Any] = {}
    for transport in ("native", "grpcio"):
        contestant = digits(ours, "fp32", transport)
        if contestant.missing:
            continue
        with started(contestant, model, BUILT_IN, cores) as session, ExitStack() as stack:
            session.checker.check_all()
            alone = rss_mb(session)
            idling = [stack.enter_context(idle(session.port)) for _ in range(IDLE)]
            waiting = rss_mb(session)
            with most_rss_mb(session) as most:
                load = h2load.load(
                    session.target(1), session.request(1), clients=BUSY, streams=1, seconds=seconds
                )
            for each in idling:
                require_open(each)
            session.checker.check_all()
        found[contestant.name] = {
            "alone_mb": alone,
            "idle_mb": waiting,
            "rss_mb": max(most),
            "requests_per_second": load.rate,
        }
        progress(f"{contestant.name}: {found[contestant.name]}")
        save({"idle": IDLE, "busy": BUSY, "servers": found})


@contextmanager
def idle(port: int) -> Iterator[socket.socket]:
    """A client that has said what HTTP/2 asks for, has heard the server's, and asks for nothing."""
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as client:
        client.sendall(http2.opening() + http2.frame(http2.SETTINGS, http2.ACK, 0, b""))
        if not client.recv(1 << 12):
            raise http2.Broken("the server ended an idle connection")
        yield client


def require_open(client: socket.socket) -> None:
    """Raises Broken where the server ended it meanwhile."""
    client.setblocking(False)
    with suppress(BlockingIOError):
        while client.recv(1 << 12):
            pass
        raise http2.Broken("the server ended an idle connection")


@contextmanager
def most_rss_mb(session: Session) -> Iterator[list[float]]:
    """Looks again and again during the block."""
    ending, found = threading.Event(), [rss_mb(session)]

    def look() -> None:
        while not ending.wait(_LOOK):
            found.append(rss_mb(session))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ending.set()
        thread.join()


def rss_mb(session: Session) -> float:
    """Of the server, now."""
    return session.usage().rss_bytes / 1e6
