"""The domain of Classify: images as arrays of digits, questions to a model, and its answers."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from conftest import CLASSIFIER_OUTPUTS, IMAGES
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from digit_image import normalise
from model_repository import Manifest, TensorSpec
from serving import classify
from serving.decoding import Decoding
from serving.errors import Draining, InvalidInput, Overloaded, RequestCancelled
from serving.pb import digits_pb2 as pb

Pixels = NDArray[np.uint8]
# How many mutated files each of two formats has; DIGITS_FUZZ_IMAGES says another number.
MUTATED = int(os.environ.get("DIGITS_FUZZ_IMAGES", "300"))


def on_paper(digit: Pixels, factor: int = 5) -> Pixels:
    """A digit of 28x28, white on black, as dark ink off the centre of white paper."""
    page = np.full((28 * factor + 60, 28 * factor + 100), 255, np.uint8)
    big = np.kron(digit, np.ones((factor, factor), np.uint8))
    page[50 : 50 + big.shape[0], 20 : 20 + big.shape[1]] -= big
    return page


def encoded(pixels: Pixels, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that declares that size, one bit a pixel, and has these chunks."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def stroke() -> Pixels:
    page = np.full((60, 60), 255, np.uint8)
    page[10:50, 28:33] = 0
    return page


WHOLE_PNG, WHOLE_JPEG = encoded(stroke()), encoded(stroke(), "JPEG")
# Files that are no image of a digit, by name, and how what is said of them begins.
BAD_FILES = {
    "empty": (b"", "not a PNG or JPEG image"),
    "text": (b"hello", "not a PNG or JPEG image"),
    "GIF": (encoded(stroke(), "GIF"), "not a PNG or JPEG image"),
    "signature": (WHOLE_PNG[:8], "cannot be decoded"),
    "cut PNG": (WHOLE_PNG[:60], "cannot be decoded"),
    "cut JPEG": (WHOLE_JPEG[:-200], "cannot be decoded"),
    "JPEG without a picture": (WHOLE_JPEG[:100], "cannot be decoded: no picture in it"),
    "bomb": (encoded(np.zeros((5001, 5000), np.bool_)), "5000x5001 is more than 25000000 pixels"),
    "declared": (png_of(100_000, 100_000), "100000x100000 is more than 25000000 pixels"),
    "warned of": (png_of(12_000, 10_000), "12000x10000 is more than 25000000 pixels"),
    "no size": (png_of(0, 0), "cannot be decoded"),
    "no data": (png_of(60, 60), "cannot be decoded"),
    "blank PNG": (encoded(np.full((60, 60), 255, np.uint8)), "no ink found"),
    "blank JPEG": (encoded(np.full((60, 60), 255, np.uint8), "JPEG"), "no ink found"),
    "chunks": (png_of(60, 60, chunk(b"IDAT", b"") * 60_000), "has more than 50000 chunks"),
    "scans": (
        WHOLE_JPEG[:-2] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" * 200 + b"\xff\xd9",
        "has 201 scans, more than 100",
    ),
}
BAD_PIXELS = {
    "nothing": (pb.Pixels(), "pixels are shaped (0, 0), expected (H, W), (H, W, 3 or 4)"),
    "channels": (
        pb.Pixels(height=2, width=2, channels=2, data=bytes(8)),
        "channels is 2, expected 1, 3 or 4",
    ),
    "too few": (
        pb.Pixels(height=4, width=4, data=bytes(15)),
        "4x4x1 takes 16 bytes of data, got 15",
    ),
    "too many": (
        pb.Pixels(height=2**31, width=2**31, channels=4, data=b"1234"),
        f"{2**31}x{2**31}x4 takes {2**64} bytes of data, got 4",
    ),
    "no ink": (pb.Pixels(height=30, width=30, data=bytes(900)), "no ink found"),
}


def manifest(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": "m",
        "version": 1,
        "inputs": (IMAGES,),
        "outputs": CLASSIFIER_OUTPUTS,
        "variants": (),
        "files": {},
        "labels": ("3", "7"),
    }
    return Manifest(**(facts | changes))


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_image_of_a_digit_says_which_and_why(name: str) -> None:
    file, fault = BAD_FILES[name]
    images = [pb.Image(encoded=WHOLE_PNG), pb.Image(encoded=file)]
    with pytest.raises(InvalidInput) as raised:
        classify.digits_of(images, 2)
    assert str(raised.value).startswith(f"images[1]: {fault}")


@pytest.mark.parametrize("name", BAD_PIXELS)
def test_pixels_that_are_no_image_of_a_digit_say_which_and_why(name: str) -> None:
    pixels, fault = BAD_PIXELS[name]
    with pytest.raises(InvalidInput) as raised:
        classify.digits_of([pb.Image(pixels=pixels)], 2)
    assert str(raised.value) == f"images[0]: {fault}"


@pytest.mark.parametrize("count", [0, 3])
def test_the_number_of_images_is_bounded(count: int) -> None:
    with pytest.raises(InvalidInput, match=f"images: 1 to 2 in one request, got {count}"):
        classify.digits_of([pb.Image(encoded=WHOLE_PNG)] * count, 2)


@pytest.mark.parametrize(
    "last",
    [
        pb.Image(encoded=png_of(5000, 5000)),
        pb.Image(pixels=pb.Pixels(height=5000, width=5000)),
    ],
    ids=["a file", "pixels"],
)
def test_all_images_of_a_request_together_have_the_pixels_that_one_may(last: pb.Image) -> None:
    """What is declared is enough: neither is there."""
    with pytest.raises(InvalidInput) as raised:
        classify.digits_of([pb.Image(encoded=WHOLE_PNG), last], 2)
    assert str(raised.value) == "images[1]: with it, the request has more than 25000000 pixels"


def test_no_image_is_decoded_once_nobody_waits_for_it() -> None:
    calls = []

    def require_wanted() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RequestCancelled("the caller went away")

    images = [pb.Image(encoded=WHOLE_PNG), pb.Image(encoded=b"")]
    with pytest.raises(RequestCancelled):
        classify.digits_of(images, 2, require_wanted)


def test_files_and_pixels_of_every_shape_become_the_same_digits() -> None:
    page = stroke()
    colour = np.stack([page] * 3, axis=2)
    opaque = np.concatenate([colour, np.full((60, 60, 1), 255, np.uint8)], axis=2)
    images = [pb.Image(encoded=WHOLE_PNG), pb.Image(encoded=encoded(opaque))]
    for each in (page, page[:, :, np.newaxis], colour, opaque):
        height, width, *channels = each.shape
        raw = pb.Pixels(height=height, width=width, channels=sum(channels), data=each.tobytes())
        images.append(pb.Image(pixels=raw))
    digits = classify.digits_of(images, 10)
    assert digits.shape == (6, 28, 28)
    np.testing.assert_array_equal(digits, np.broadcast_to(normalise(page), (6, 28, 28)))


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({}, True),
        ({"outputs": CLASSIFIER_OUTPUTS[:1]}, True),
        ({"labels": ()}, False),
        ({"labels": ("1", "2", "3")}, False),
        ({"inputs": (TensorSpec("x", "UINT8", (-1, 28, 28)),)}, False),
        ({"inputs": (TensorSpec("images", "FP32", (-1, 28, 28)),)}, False),
        ({"inputs": (TensorSpec("images", "UINT8", (2, 28, 28)),)}, False),
        ({"inputs": (IMAGES, IMAGES)}, False),
        ({"outputs": CLASSIFIER_OUTPUTS[1:]}, False),
    ],
)
def test_a_model_takes_digits_by_its_signature(changes: dict[str, Any], takes: bool) -> None:
    assert classify.takes_digits(manifest(**changes)) is takes


def test_as_many_wait_to_be_decoded_as_may_and_then_no_more() -> None:
    go = threading.Event()
    decoding = Decoding(threads=1, waiting=1)
    futures = [decoding.submit(go.wait) for _ in range(2)]
    with pytest.raises(Overloaded):
        decoding.submit(go.wait)
    assert decoding.inside == 2
    go.set()
    assert [future.result() for future in futures] == [True, True]
    assert decoding.submit(lambda: decoding.inside).result() == 1


def test_what_is_cancelled_while_it_waits_gives_its_place_to_another() -> None:
    go = threading.Event()
    decoding = Decoding(threads=1, waiting=1)
    running, waiting = decoding.submit(go.wait), decoding.submit(go.wait)
    assert waiting.cancel()
    assert decoding.inside == 1
    another = decoding.submit(go.wait)
    go.set()
    assert running.result() == another.result() is True


def test_a_server_that_ends_decodes_nothing_more() -> None:
    go = threading.Event()
    decoding = Decoding(threads=1, waiting=1)
    running, waiting = decoding.submit(go.wait), decoding.submit(go.wait)
    decoding.close()
    assert waiting.cancelled()
    with pytest.raises(Draining):
        decoding.submit(go.wait)
    go.set()
    assert running.result()
    assert decoding.inside == 0


# Hostile files


def digits_or_invalid(file: bytes) -> None:
    """What is no image of a digit is the caller's fault, and nothing else ever comes of it."""
    with contextlib.suppress(InvalidInput):
        digits = classify.digit_of_file(file)
        assert (digits.shape, digits.dtype) == ((1, 28, 28), np.dtype(np.uint8))


def whole_files() -> list[bytes]:
    """Of every kind that the formats have."""
    page = Image.fromarray(stroke())
    files = [encoded(np.asarray(page.convert(mode))) for mode in ("L", "RGB", "RGBA", "LA")]
    buffers = [io.BytesIO() for _ in range(5)]
    page.convert("P").save(buffers[0], "PNG", transparency=b"\xff\0\x80")
    Image.fromarray(np.asarray(page).astype(np.uint16) * 257).save(buffers[1], "PNG")
    page.save(buffers[2], "PNG", save_all=True, append_images=[page.rotate(30)])
    page.convert("1").save(buffers[3], "PNG")
    page.convert("CMYK").save(buffers[4], "JPEG")
    files += [buffer.getvalue() for buffer in buffers]
    files += [encoded(stroke(), "JPEG", progressive=each, quality=40) for each in (True, False)]
    return files


WHOLE = whole_files()


@settings(max_examples=MUTATED)
@given(data=st.data())
def test_mutated_files_are_a_digit_or_the_callers_fault(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(file) - 1))
        kind = data.draw(st.sampled_from(["flip", "insert", "delete", "repeat"]))
        if kind == "flip":
            file[at] ^= data.draw(st.integers(1, 255))
        elif kind == "insert":
            file[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete" and len(file) > 40:
            del file[at : at + data.draw(st.integers(1, 30))]
        elif kind == "repeat":
            file[at:at] = file[at : at + 200]
    digits_or_invalid(bytes(file))


@settings(max_examples=MUTATED)
@given(data=st.data())
def test_chunks_with_a_right_sum_and_a_wrong_content_are_no_other(data: st.DataObject) -> None:
    """A damaged chunk is refused by its sum alone; this gets behind it."""
    header = struct.pack(
        ">IIBBBBB",
        data.draw(st.integers(0, 300)),
        data.draw(st.integers(0, 300)),
        data.draw(st.sampled_from([1, 2, 4, 8, 16, 3])),
        data.draw(st.sampled_from([0, 2, 3, 4, 6, 1])),
        0,
        0,
        data.draw(st.integers(0, 1)),
    )
    kinds = st.sampled_from([b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"iCCP", b"zTXt", b"acTL"])
    parts = [chunk(b"IHDR", header)]
    for _ in range(data.draw(st.integers(0, 4))):
        parts.append(chunk(data.draw(kinds), data.draw(st.binary(max_size=60))))
    parts.append(chunk(b"IDAT", zlib.compress(data.draw(st.binary(max_size=300)) * 50)))
    digits_or_invalid(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
