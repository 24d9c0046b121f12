"""Prediction ids: what was predicted, when and by which version, as a short text that we signed.

A server that knows the key needs nothing else to count a true label that comes for one: no store,
and no memory of the prediction. Owns the format and the keys; counts nothing.

An id is base64url without padding (RFC 4648, 5) of, big-endian:

    1 byte    format, 1
    7 bytes   milliseconds since 1970
    8 bytes   tell it from every other id: a counter of the process, from a random start
    4 bytes   index of the predicted label
    2 bytes   confidence in 1/65534; 65535 where the model gives none
    ...       version and name of the model, "3/resnet18"
    16 bytes  HMAC-SHA256 of all that, its first half
"""

from __future__ import annotations

import hmac
import itertools
import math
import re
import secrets
import struct
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import StartupError
from serving.predictions import Prediction

SHORTEST_KEY = 16  # bytes

_FORMAT = 1
_FIELDS = struct.Struct(">QQIH")
_MAC_BYTES = 16
_STEPS = 65534
_UNKNOWN = 65535
_TEXT = re.compile(r"[A-Za-z0-9_-]{55,1024}\Z")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = str.maketrans("-_", "+/")


class PredictionIdError(Exception):
    """Not one of our ids; the message is for who sent it."""


class MalformedId(PredictionIdError):
    """Not an id at all."""


class ForgedId(PredictionIdError):
    """Signed by none of our keys."""


@dataclass(frozen=True, slots=True)
class PredictionId:
    """What an id says; only of one whose signature was right."""

    model: str
    version: int
    label: int  # index into the manifest's labels
    confidence: float  # NaN where the model gives none
    time: float  # seconds since 1970
    digest: bytes  # 8 bytes, by which it can be told from every other


class Signer:
    """Makes and reads ids. The first key signs, all are accepted: so that keys can be changed.

    Of any number of threads. An id takes about 2 µs to make, and 8 to read.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        # Copying what has taken the key in is faster than hmac.digest, which begins anew.
        self._keyed = [hmac.new(key, digestmod="sha256") for key in keys]
        self._numbers = itertools.count(secrets.randbits(63))

    def ids(
        self, model: str, version: str, classes: int, predictions: Sequence[Prediction]
    ) -> list[str]:
        """An id for each prediction of now; empty for a label that is none of so many classes."""
        head = _FORMAT << 56 | time.time_ns() // 1_000_000
        tail = f"{version}/{model}".encode()
        return [
            self._signed(_FIELDS.pack(head, next(self._numbers), label, _steps(confidence)) + tail)
            if 0 <= label < classes
            else ""
            for label, confidence, _, _ in predictions
        ]

    def read(self, text: str) -> PredictionId:
        """What the id says; raises MalformedId or ForgedId."""
        raw = _decoded(text)
        content, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not any(hmac.compare_digest(_mac(keyed, content), mac) for keyed in self._keyed):
            raise ForgedId("not signed with a key of this server")
        head, _, label, steps = _FIELDS.unpack_from(content)
        version, _, model = content[_FIELDS.size :].decode().partition("/")
        confidence = math.nan if steps == _UNKNOWN else steps / _STEPS
        seconds = (head & (1 << 56) - 1) / 1e3
        return PredictionId(model, int(version), label, confidence, seconds, mac[:8])

    def _signed(self, content: bytes) -> str:
        raw = content + _mac(self._keyed[0], content)
        return b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def feedback_keys(path: Path | None) -> tuple[bytes, ...]:
    """The secrets of a file, one a line; one drawn at random where there is no file.

    Raises StartupError, naming the file.
    """
    if path is None:
        return (secrets.token_bytes(32),)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartupError(f"--feedback-key-file: {path}: {error.strerror}") from None
    keys = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not keys:
        raise StartupError(f"--feedback-key-file: {path}: holds no secret")
    for number, key in keys:
        if len(key) < SHORTEST_KEY:
            raise StartupError(
                f"--feedback-key-file: {path}: line {number} has {len(key)} bytes,"
                f" a secret at least {SHORTEST_KEY}"
            )
    return tuple(key for _, key in keys)


def _steps(confidence: float) -> int:
    """A NaN is neither above 0 nor below."""
    if confidence >= 0.0:
        return min(_STEPS, int(confidence * _STEPS + 0.5)) if confidence < 1.0 else _STEPS
    return 0 if confidence < 0.0 else _UNKNOWN


def _mac(keyed: hmac.HMAC, content: bytes) -> bytes:
    signing = keyed.copy()
    signing.update(content)
    return signing.digest()[:_MAC_BYTES]


def _decoded(text: str) -> bytes:
    if not _TEXT.match(text):
        raise MalformedId("not a prediction id")
    try:
        raw = a2b_base64(text.translate(_FROM_URL) + "=" * (-len(text) % 4))
    except ValueError:
        raise MalformedId("not a prediction id") from None
    if raw[0] != _FORMAT:
        raise MalformedId(f"a prediction id of format {raw[0]}, which is unknown here")
    return raw
