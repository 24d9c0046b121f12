"""Bearer tokens: who holds which, with which roles and rate, as a file or the environment has them.

Of a token only its SHA-256 is kept, and only its name is ever shown. Knows no transport, and not
what a call needs: `authorization` does.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from serving.config import ServerConfig
from serving.errors import StartupError

# Characters of a token: 128 bits as hexadecimal digits, so that nobody guesses one.
SHORTEST, LONGEST = 32, 1024
# Each call's token is compared with all of them.
MOST_TOKENS = 256
# Bytes of the file.
LARGEST_FILE = 1 << 20
# Seconds between two looks at the file.
LOOK_EVERY = 1.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")  # shorter than any token
# https://www.rfc-editor.org/rfc/rfc6750#section-2.1
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_RATE = re.compile(r"rate=([0-9]{1,7}(?:\.[0-9]{1,3})?)/s")
_BURST = re.compile(r"burst=([1-9][0-9]{0,6})")
_FORMAT = "NAME ROLE[,ROLE] TOKEN|sha256:HEX [rate=N/s] [burst=N]"

log = logging.getLogger(__name__)


class Need(StrEnum):
    """What a call needs: nothing, any token, or one of a role."""

    NOTHING = "nothing"
    TOKEN = "token"  # nosec B105 # the word, not one of them
    INFER = "infer"
    FEEDBACK = "feedback"
    ADMIN = "admin"


ROLES = (Need.INFER, Need.FEEDBACK, Need.ADMIN)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one token allows; no role implies another."""

    name: str
    roles: frozenset[Need]
    digest: bytes = field(repr=False)  # SHA-256 of the token
    rate: float = 0.0  # calls per second; 0 sets no limit
    burst: float = 0.0  # calls at once


class TokensError(ValueError):
    """Tokens that are none; the message has the line's number, and nothing of what it holds."""


def parse(text: str) -> tuple[Grant, ...]:
    """One token a line; empty ones, and those that begin with #, say nothing.

    Raises TokensError.
    """
    lines = ((n, line.split()) for n, line in enumerate(text.splitlines(), 1))
    given = [(n, words) for n, words in lines if words and not words[0].startswith("#")]
    if not given:
        raise TokensError("holds no token")
    if len(given) > MOST_TOKENS:
        raise TokensError(f"holds {len(given)} tokens, more than {MOST_TOKENS}")
    grants = []
    for number, words in given:
        try:
            grants.append(_grant(words))
        except TokensError as error:
            raise TokensError(f"line {number} {error}") from None
    _require_different(grants)
    return tuple(grants)


def _grant(words: Sequence[str]) -> Grant:
    if len(words) < 3:
        raise TokensError(f"is not {_FORMAT}")
    name, roles, token, *limits = words
    if not _NAME.fullmatch(name):
        raise TokensError("begins with no name: letters, digits, and _.- between them")
    if set(roles.split(",")) - set(ROLES):  # not shown: it may be a token in the wrong place
        raise TokensError(f"has an unknown role; there is {', '.join(ROLES)}")
    rate, burst = _limits(limits)
    return Grant(name, frozenset(map(Need, roles.split(","))), _digest(token), rate, burst)


def _digest(token: str) -> bytes:
    if match := _HASH.fullmatch(token):
        return bytes.fromhex(match[1])
    if not SHORTEST <= len(token) <= LONGEST:
        size = f"{SHORTEST} to {LONGEST}"
        raise TokensError(f"has a token of {len(token)} characters, which takes {size}")
    if token.startswith("sha256") or not _TOKEN.fullmatch(token):
        raise TokensError("has a token of other characters than letters, digits, -._~+/ and last =")
    return hashlib.sha256(token.encode()).digest()


def _limits(words: Sequence[str]) -> tuple[float, float]:
    """Calls per second, and at once: by default those of one second."""
    rate = burst = 0.0
    for word in words:
        if (match := _RATE.fullmatch(word)) and float(match[1]) and not rate:
            rate = float(match[1])
        elif (match := _BURST.fullmatch(word)) and not burst:
            burst = float(match[1])
        else:
            raise TokensError("ends with something else than rate=N/s and burst=N, once each")
    if burst and not rate:
        raise TokensError("has a burst without a rate")
    return rate, burst or max(1.0, rate)


def _require_different(grants: Sequence[Grant]) -> None:
    names = [each.name for each in grants]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TokensError(f"has the name {twice!r} twice")
    if len({each.digest for each in grants}) < len(grants):
        raise TokensError("has one token under two names")


def holder(grants: Sequence[Grant], token: bytes) -> Grant | None:
    """Whose token it is. All are compared, in constant time: how long that takes tells nothing."""
    digest = hashlib.sha256(token).digest()
    found = None
    for each in grants:
        if hmac.compare_digest(each.digest, digest):
            found = each
    return found


def bearer(headers: Sequence[str | bytes]) -> bytes | None:
    """The token of a call's `authorization` headers; None where there is not exactly one."""
    if len(headers) != 1:
        return None
    given = headers[0].encode("latin-1", "replace") if isinstance(headers[0], str) else headers[0]
    scheme, _, token = given.partition(b" ")
    return (token.strip(b" ") or None) if scheme.lower() == b"bearer" else None


def configured(config: ServerConfig) -> TokenSource | None:
    """Where the server has its tokens from; None where it asks for none."""
    if config.token_file is not None:
        return TokenSource(config.token_file)
    return TokenSource(None, config.tokens) if config.tokens else None


class TokenSource:
    """The tokens of a file, which is read again when it changes, or of a text, which stays.

    StartupError, naming the source, where they cannot be used at first. Later on that is logged,
    once, and those before stay.
    """

    def __init__(self, path: Path | None, text: str = "") -> None:
        self._path = path
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        where = f"--token-file: {path}" if path else "DIGITS_TOKENS"
        try:
            text = _read(path) if path else text
            self.grants = parse(text)
        except TokensError as error:
            raise StartupError(f"{where}: {error}") from None
        self._seen = (text, "")

    def watch(self, told: Callable[[tuple[Grant, ...]], None]) -> None:
        """From now on look at the file, and tell what new tokens there are, on another thread."""
        if self._path:
            look = functools.partial(self._look_again, self._path, told)
            self._thread = threading.Thread(target=look, name="tokens", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread:
            self._thread.join()

    def _look_again(self, path: Path, told: Callable[[tuple[Grant, ...]], None]) -> None:
        while not self._over.wait(LOOK_EVERY):
            if self._changed(path):
                told(self.grants)

    def _changed(self, path: Path) -> bool:
        """The whole file is compared: it is small, and dates are alike for what is quick."""
        try:
            seen = (_read(path), "")
        except TokensError as error:
            seen = ("", str(error))
        if seen == self._seen:
            return False
        self._seen = text, fault = seen
        try:
            if fault:
                raise TokensError(fault)
            self.grants = parse(text)
        except TokensError as error:
            log.error("--token-file: %s: %s; the tokens before stay", path, error)
            return False
        names = ", ".join(each.name for each in self.grants)
        log.info("--token-file: %s was read again: %s", path, names)
        return True


def _read(path: Path) -> str:
    """A regular file of text, wherever links lead: for a pipe one would wait."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise TokensError("is no file")
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise TokensError(error.strerror or "cannot be read") from None
    if len(content) > LARGEST_FILE:
        raise TokensError(f"is larger than {LARGEST_FILE} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise TokensError("is no text in UTF-8") from None
