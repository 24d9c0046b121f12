"""Content-Encoding: bodies inflated, within bounds, and answers deflated for those who ask.

`deflate` is zlib's format, as RFC 9110 has it, and not the bare stream.
"""

from __future__ import annotations

import zlib

from starlette.exceptions import HTTPException

from serving.errors import InvalidInput

# zlib's wbits.
ENCODINGS = {"gzip": 31, "deflate": 15}
# Bytes of an answer from which on it is worth it.
LEAST = 1024
# Of 9: tensors get hardly smaller by more, and take longer.
_LEVEL = 1


def inflated(body: bytes, encoding: str, most: int, instead: str = "") -> bytes:
    """The body before it was encoded; 413 where that has more than `most` bytes, which tells what
    to do `instead`.

    415 for an encoding that is not known, with those that are.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        details = f"Content-Encoding {encoding!r:.40} is not known; there is {known}"
        raise HTTPException(415, details, {"Accept-Encoding": known})
    inflate = zlib.decompressobj(ENCODINGS[encoding])
    try:
        found = inflate.decompress(body, most + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {encoding}: {error}") from None
    if len(found) > most:
        raise HTTPException(413, f"the body is larger than {most} bytes, once inflated{instead}")
    if not inflate.eof or inflate.unused_data:
        raise InvalidInput(f"the body is not one whole stream of {encoding}")
    return found


def wanted(accept_encoding: str) -> str:
    """The encoding that a client likes best of those that are known, gzip if it likes both; empty
    for none."""
    weights = dict(map(_weight, accept_encoding.lower().split(",")))
    best = max(ENCODINGS, key=lambda each: weights.get(each, 0.0))
    return best if weights.get(best, 0.0) > 0 else ""


def deflated(body: bytes, encoding: str) -> bytes:
    """The body in that encoding."""
    deflate = zlib.compressobj(_LEVEL, wbits=ENCODINGS[encoding])
    return deflate.compress(body) + deflate.flush()


def _weight(choice: str) -> tuple[str, float]:
    """`gzip;q=0.5` as ("gzip", 0.5)."""
    name, _, quality = choice.partition(";")
    try:
        return name.strip(), float(quality.strip().removeprefix("q=") or 1)
    except ValueError:
        return name.strip(), 0.0
