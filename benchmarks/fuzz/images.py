"""Image files and pixels through the decoding of digits: PNG and JPEG of every kind, damaged in
their bytes, or in chunks and segments whose sums are right again.

Judges that each is a digit of 28x28 or InvalidInput, within its time.
"""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.fuzz import damage
from benchmarks.fuzz.running import Target, Wrong
from serving import classify
from serving.errors import InvalidInput
from serving.pb import digits_pb2 as pb

# Seconds of the CPU that one may take; the largest that is whole takes a tenth of them.
SLOW = 5.0
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16")
CHUNKS = (b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"gAMA",
          b"bKGD", b"pHYs", b"sBIT", b"IEND", b"IHDR", b"xxxx")  # fmt: skip


def drawn(draw: Random) -> NDArray[np.uint8]:
    """A stroke or two on paper of any shade, of any shape and size."""
    height, width = (draw.choice((1, 2, 3, 27, 28, 29, 40, 60, 100)) for _ in range(2))
    dark, light = draw.randrange(256), draw.randrange(256)
    page = np.full((height, width), light, np.uint8)
    for _ in range(draw.randrange(3)):
        top, left = draw.randrange(height), draw.randrange(width)
        page[top : top + draw.randrange(1, 40), left : left + draw.randrange(1, 12)] = dark
    if draw.random() < 0.2:
        noise = np.frombuffer(draw.randbytes(page.size), np.uint8).reshape(page.shape)
        page = np.where(noise > 128, noise, page)
    return page


def whole(draw: Random) -> bytes:
    """A file that is sound, of some odd kind."""
    image = Image.fromarray(drawn(draw))
    buffer = io.BytesIO()
    if draw.random() < 0.5:
        mode = draw.choice(MODES)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        else:
            image = image.convert(mode) if mode not in ("P", "PA") else image.convert("P")
        options: dict[str, Any] = {"compress_level": draw.choice((0, 1, 9))}
        if image.mode == "P" and draw.random() < 0.5:
            options["transparency"] = draw.randbytes(draw.randrange(1, 256))
        image.save(buffer, "PNG", **options)
    else:
        exif = Image.Exif()
        exif[0x0112] = draw.randrange(10)
        image.convert(draw.choice(("L", "RGB", "CMYK"))).save(
            buffer,
            "JPEG",
            quality=draw.choice((1, 40, 95)),
            progressive=draw.random() < 0.5,
            exif=exif,
        )
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def summed(draw: Random) -> bytes:
    """A PNG of chunks whose sums are right and whose contents are not."""
    sides = [draw.choice((0, 1, 3, 28, 60, 300, 6000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
    depth, colour = draw.choice((1, 2, 4, 8, 16, 3)), draw.choice((0, 2, 3, 4, 6, 1))
    header = struct.pack(">IIBBBBB", *sides, depth, colour, 0, 0, draw.randrange(3))
    parts = [_chunk(b"IHDR", header)]
    for _ in range(draw.randrange(5)):
        kind = draw.choice(CHUNKS)
        parts.append(_chunk(kind, draw.randbytes(draw.choice((0, 1, 6, 26, 256, 768)))))
    pixels = draw.randbytes(draw.randrange(300)) * draw.choice((1, 50, 500))
    parts.append(_chunk(b"IDAT", zlib.compress(pixels)))
    draw.shuffle(parts[1:])
    return SIGNATURE + b"".join(parts) + _chunk(b"IEND", b"")


def segmented(draw: Random) -> bytes:
    """A JPEG with segments doubled, dropped, swapped, or of other lengths and contents."""
    data = io.BytesIO()
    Image.fromarray(drawn(draw)).save(data, "JPEG", progressive=draw.random() < 0.5)
    file, parts, at = data.getvalue(), [], 2
    while at + 4 <= len(file) and file[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        parts.append(file[at:end])
        at = end
    for _ in range(draw.choice((1, 2, 4))):
        one = draw.randrange(len(parts))
        parts[one:one] = draw.choice(
            (
                [parts[one]] * draw.choice((1, 100)),
                [b"\xff" + draw.randbytes(1) + struct.pack(">H", draw.choice((0, 2, 9)))],
                [b"\xff\xe1\x00\x20Exif\0\0" + draw.choice((b"II*\0", b"MM\0*"))
                 + draw.randbytes(20)],
                [damage.bytes_of(draw, parts[one])],
            )
        )  # fmt: skip
        if draw.random() < 0.3:
            del parts[draw.randrange(len(parts))]
    return file[:2] + b"".join(parts) + file[at:]


def _damaged(draw: Random) -> bytes:
    return damage.bytes_of(draw, whole(draw), [])


KINDS: tuple[Callable[[Random], bytes], ...] = (whole, _damaged, _damaged, summed, segmented)


def file(draw: Random) -> bytes:
    """One of any kind."""
    return draw.choice(KINDS)(draw)


def request(draw: Random) -> bytes:
    """A ClassifyRequest of one to three images."""
    message = pb.ClassifyRequest(model_name="digits", id="some", return_normalised=True)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if draw.random() < 0.6:
            message.images.add(encoded=file(draw))
            continue
        page = drawn(draw)
        pixels = message.images.add().pixels
        pixels.height, pixels.width = page.shape
        pixels.data = page.tobytes()
        if draw.random() < 0.5:
            damage.message_of(draw, pixels, ())
    return message.SerializeToString()


class Images:
    """The target."""

    def case(self, draw: Random) -> bytes:
        """One more file."""
        return file(draw)

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """One after the other."""
        return [_verdict(case) for case in cases]


def _verdict(case: bytes) -> str:
    begun = time.process_time()
    try:
        digit = classify.digit_of_file(case)
    except InvalidInput as error:
        told = str(error).removeprefix("image: ").partition(":")[0]
        told = "".join(letter for letter in told if not letter.isdigit())
    else:
        told = "a digit"
        if digit.shape != (1, 28, 28) or digit.dtype != np.uint8 or not digit.any():
            raise Wrong(f"a digit is {digit.shape} {digit.dtype}", case)
    if time.process_time() - begun > SLOW:
        raise Wrong(f"took {time.process_time() - begun:.1f} s", case)
    return told


@contextmanager
def opened() -> Iterator[Target]:
    """Needs no server."""
    yield Images()
