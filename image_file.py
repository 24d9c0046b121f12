"""A PNG or JPEG file as 8-bit pixels, within bounds on size, memory and time, whatever it holds.

Pillow is given what makes pixels and nothing else of a file: no text, profile, thumbnail, animation
or metadata is ever parsed, so that none can be a bomb or a warning. A large picture is averaged
down strip by strip, or decoded small where it is a JPEG, and is never there twice. numpy and Pillow
only.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from os import PathLike

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

MAX_PIXELS = 25_000_000
# The longer side of what is given back, at most: a digit that fills a twentieth of it is still
# larger than MNIST's.
LONGEST = 512
# A progressive JPEG draws all its pixels again in each scan; encoders make about ten. All scans
# together draw at most so many times what one of MAX_PIXELS does.
MAX_SCANS, MAX_DRAWN = 100, 20
# Chunks of a PNG, or segments before a JPEG's picture.
MAX_PARTS = 50_000

# https://www.w3.org/TR/png-3/#5ChunkOrdering
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# https://www.w3.org/Graphics/JPEG/itu-t81.pdf, table B.1: APP0 and APP14 say what colours mean.
_JPEG = b"\xff\xd8\xff"
_SCAN = 0xDA
_APP0, _EXIF, _APP14, _COMMENT = 0xE0, 0xE1, 0xEE, 0xFE
_JPEG_DROPPED = frozenset({*range(_APP0 + 1, 0xF0), _COMMENT}) - {_APP14}
# Exif's tag 274 (CIPA DC-008, 4.6.5): how to turn the picture upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_ENTRIES = 512  # of an Exif directory; cameras write about twenty
_STRIP_PIXELS = 1 << 20


class ImageError(ValueError):
    """An image that cannot be decoded, or in which there is no digit to be found."""


def read_image(
    source: str | PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """`decode` a file, by its path or its bytes; ImageError names it.

    OSError where the file itself cannot be opened.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read()
    try:
        return decode(source, max_pixels=max_pixels)
    except ImageError as fault:
        raise ImageError(f"{name}: {fault}") from fault.__cause__


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of a PNG or JPEG, upright as its Exif data says; of an animation, the still one.

    (H, W) grey, or (H, W, 4) with transparency; the longer side is averaged down to at most 512.
    Raises ImageError for what cannot be decoded, or has more than max_pixels, which is checked
    before a pixel is.
    """
    with _decoding():
        opened, orientation, scans = _opened(data)
        with opened as image:
            _require_size(image, scans, max_pixels)
            upright = _UPRIGHT.get(orientation)
            pixels = _reduced(image)
            return np.asarray(pixels if upright is None else pixels.transpose(upright))


def pixel_count(data: bytes) -> int:
    """How many pixels a PNG or JPEG says that it has; none is decoded. Raises ImageError."""
    with _decoding():
        opened, _, _ = _opened(data)
        with opened as image:
            return image.width * image.height


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The same of an image of Pillow's, of any mode; it is changed where it is a file's."""
    return np.asarray(_reduced(image))


# Files


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Whatever Pillow raises in the block becomes ImageError: on hostile bytes, almost anything."""
    try:
        yield
    except ImageError:
        raise
    except Exception as fault:
        raise ImageError(f"cannot be decoded: {fault}") from fault


def _opened(data: bytes) -> tuple[Image.Image, int, int]:
    """The image before a pixel is decoded, its orientation, and how often it is drawn.

    By the plugins themselves: Image.open warns of many pixels, and guesses at other formats.
    """
    if data.startswith(_PNG):
        picture, orientation = _png_parts(data)
        return PngImageFile(io.BytesIO(picture)), orientation, 1
    if data.startswith(_JPEG):
        picture, orientation, scans = _jpeg_parts(data)
        return JpegImageFile(io.BytesIO(picture)), orientation, scans
    raise ImageError("not a PNG or JPEG image")


def _png_parts(data: bytes) -> tuple[bytes, int]:
    """What makes the pixels, and the orientation."""
    view, at, orientation = memoryview(data), len(_PNG), 1
    kept = [view[:at]]
    for _ in range(MAX_PARTS):
        if at >= len(data):
            return b"".join(kept), orientation
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(view[at : at + 4], "big")
        if kind in _PNG_KEPT:
            kept.append(view[at:end])
        elif kind == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        at = end
    raise ImageError(f"has more than {MAX_PARTS} chunks")


def _jpeg_parts(data: bytes) -> tuple[bytes, int, int]:
    """What makes the pixels, the orientation, and the number of scans."""
    view, at, orientation = memoryview(data), 2, 1
    kept = [view[:at]]
    for _ in range(MAX_PARTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            break
        code, end = data[at + 1], at + 2 + int.from_bytes(view[at + 2 : at + 4], "big")
        if code == _SCAN:
            kept.append(view[at:])
            return b"".join(kept), orientation, data.count(b"\xff\xda", at)
        if code == _EXIF and data.startswith(b"Exif\0\0", at + 4):
            orientation = _orientation(data[at + 10 : end])
        if code not in _JPEG_DROPPED and code != 0xFF:
            kept.append(view[at:end])
        at = at + 1 if code == 0xFF else end  # filling, or a segment
    raise ImageError("cannot be decoded: no picture in it")


def _require_size(image: Image.Image, scans: int, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} is more than {max_pixels} pixels")
    most = min(MAX_SCANS, MAX_DRAWN * max_pixels // (width * height))
    if scans > most:
        raise ImageError(f"has {scans} scans, more than {most}")


def _orientation(exif: bytes) -> int:
    """1 to 8 as Exif has it; 1, which is upright, where it does not say."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(min(entries, _MOST_ENTRIES)):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:  # cut off
        pass
    return 1


# Pixels


def _reduced(image: Image.Image) -> Image.Image:
    """8-bit grey, or RGBA where it is transparent, at most LONGEST on the longer side."""
    if image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bit(np.asarray(image, dtype=np.float32)))
    _draft(image)
    image.load()
    factor = _factor(image)
    alpha = image.has_transparency_data and not image.mode.startswith("I")
    if image.width * image.height <= _STRIP_PIXELS:
        return _plain(image, alpha, factor)
    width, height = -(-image.width // factor), -(-image.height // factor)
    whole = Image.new("RGBA" if alpha else "L", (width, height))
    rows = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_plain(strip, alpha, factor), (0, top // factor))
    return whole


def _draft(image: Image.Image) -> None:
    """Have a large JPEG decoded at a half, a quarter or an eighth, and only its grey: that needs
    neither the memory nor most of the time."""
    factor = _factor(image)
    image.draft("L", (max(1, image.width // factor), max(1, image.height // factor)))


def _factor(image: Image.Image) -> int:
    return -(-max(image.size) // LONGEST)


def _plain(image: Image.Image, alpha: bool, factor: int) -> Image.Image:
    """Grey, or RGBA; averaged, where it is transparent, by how much there is of each colour."""
    if image.mode.startswith("I"):  # 16 bits
        deep = np.asarray(image)
        image = Image.fromarray((deep // 257).astype(np.uint8))
    elif alpha:
        image = image.convert("RGBA")
        return image.convert("RGBa").reduce(factor).convert("RGBA") if factor > 1 else image
    elif image.mode != "L":
        image = (image.convert("RGB") if image.mode != "1" else image).convert("L")
    return image.reduce(factor) if factor > 1 else image


def _eight_bit(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of whole or floating numbers: 0 ... 65535 where any is above 255, else 0 ... 255 already."""
    scale = 257.0 if values.max() > 255.0 else 1.0
    levels: NDArray[np.uint8] = np.clip(np.rint(values / scale), 0, 255).astype(np.uint8)
    return levels
