"""TlsWatch: looks again and again at the files of TLS, and hands on what is new and good.

Owns the thread that looks, and what is said of a certificate's end. Established connections are the
transports', which go on by what they began with.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from serving.config import ServerConfig
from serving.errors import StartupError
from serving.families import Exported
from serving.series import SeriesWriter
from serving.tls import TlsFiles, check, ends_soon, expiry, read, tls_files

# Seconds between two looks: three small files are read.
LOOK_EVERY = 1.0

Take = Callable[[TlsFiles], None]

log = logging.getLogger("serving.tls")


class TlsWatch:
    """The files of one process, `files`, as they were last good; None without TLS.

    Looks at them from `start` to `stop`. StartupError names a file that is no good from the start;
    later, what was there before goes on, and that is logged.
    """

    def __init__(self, config: ServerConfig, metrics: SeriesWriter) -> None:
        self._config = config
        self._metrics = metrics
        self._takers: list[Take] = []
        self._refused: tuple[TlsFiles | None, str] | None = None  # what was said last
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tls", daemon=True)
        self.files = tls_files(config)

    def follow(self, take: Take) -> None:
        """Have it told of all that comes after `files`; before `start`."""
        self._takers.append(take)

    def start(self) -> None:
        """Say until when the certificate is good, and look from now on."""
        if self.files:
            self._tell_expiry(self.files)
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Take what is new. Files may be changing just now, and not fit together for a moment."""
        files = None
        try:
            files = read(self._config)
            if files is None or (self._refused and files == self._refused[0]):
                return
            if files == self.files:
                self._refused = None
                return
            check(self._config, files)
        except StartupError as error:
            self._refuse(files, str(error))
        else:
            self._take(files)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY):
            try:
                self.look()
            except Exception:  # whatever it is, the next look may be better
                log.exception("the files of TLS cannot be taken")

    def _take(self, files: TlsFiles) -> None:
        self._refused = files, ""  # should one of them fail, these are not tried again
        for take in self._takers:
            take(files)
        self.files, self._refused = files, None
        log.info("new connections go by the TLS files that are there now")
        self._tell_expiry(files)

    def _refuse(self, files: TlsFiles | None, reason: str) -> None:
        """Once for each fault."""
        if self._refused is None or self._refused[1] != reason:
            log.warning("TLS goes on with the files that it had: %s", reason)
        self._refused = files, reason

    def _tell_expiry(self, files: TlsFiles) -> None:
        end = expiry(files.certificate).timestamp()
        self._metrics.set(Exported.tls_certificate_expiry, end)
        if ends := ends_soon(files.certificate):
            log.warning("--tls-certificate: %s: %s", self._config.tls_certificate, ends)
