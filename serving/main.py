"""The command line: one process or several, until a signal says to stop."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping, Sequence

from serving import logs, signals
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
    # Of one process, a terminal's end is the server's, as of any program.
    heard = signals.heard(*[signal.SIGHUP] if config.workers > 1 else [])
    try:
        server = _server(config)
        server.start()
    except StartupError as error:
        _tell_operator(error, config.log_format)
        return 1
    while heard.get() == signal.SIGHUP:
        if isinstance(server, Supervisor):
            server.restart()
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
