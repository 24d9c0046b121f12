"""The command line: one process or several, until a signal says to stop."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

from serving import logs
from serving.config import ServerConfig
from serving.errors import StartupError
from serving.options import parse
from serving.processes import collect_less_often
from serving.server import Server
from serving.workers import Supervisor

log = logging.getLogger("serving")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    config = parse(argv, environ)
    logs.configure(config.log_level, config.log_format)
    collect_less_often()
    stopping = _on_signals()
    try:
        server = _server(config)
        server.start()
    except StartupError as error:
        _tell_operator(error, config.log_format)
        return 1
    stopping.wait()
    log.info("draining, for at most %g s", config.drain_timeout)
    server.stop()
    log.info("drained")
    return 0


def _server(config: ServerConfig) -> Server | Supervisor:
    return Server(config) if config.workers == 1 else Supervisor(config)


def _tell_operator(error: StartupError, log_format: str) -> None:
    """One line: for a person the reason alone, for a machine like all others."""
    if log_format == "json":
        log.critical("%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)


def _on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; only SIGINT, pressed again, then kills.

    A second SIGTERM is nobody's impatience: `timeout` and some init processes send two.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stopping.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    return stopping
