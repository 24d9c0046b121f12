"""Any image of one digit, made into what MNIST would have held; used by training and by serving.

Owns decoding (with a bound on size) and normalisation. Knows nothing of models or transports;
numpy and Pillow only.
"""

from __future__ import annotations

import io
from os import PathLike

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SIDE = 28  # MNIST's image
BOX = 20  # MNIST's digit, its longer side
CENTRE = 14.0  # the pixel index on which MNIST puts the centre of mass
MAX_PIXELS = 25_000_000
FORMATS = ("PNG", "JPEG")

_WORKING_SIDE = 1024  # larger images are averaged down to this first
_MIN_CONTRAST = 16.0  # grey levels; less than this is paper, not ink
_CROP_LEVEL = 0.1  # of the contrast; fainter pixels do not widen the crop


class ImageError(ValueError):
    """An image that cannot be decoded, or in which there is no digit to be found."""


def read_image(
    source: str | PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG, from a path or from its bytes, upright as its EXIF data says.

    Gives (H, W) for grey, (H, W, 3) for colour, (H, W, 4) with transparency. Raises ImageError,
    naming the file, for anything undecodable or of more than max_pixels, which is checked before
    a pixel is decoded; OSError where the file itself cannot be opened.
    """
    if isinstance(source, bytes):
        return _decode(source, "image", max_pixels)
    with open(source, "rb") as file:
        return _decode(file.read(), str(source), max_pixels)


def normalise(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give one digit as MNIST holds it: (28, 28), 0 black ... 255 white ink.

    Takes a Pillow image of any mode, or uint8 (or bool) pixels shaped (H, W), (H, W, 1), (H, W, 3)
    or (H, W, 4). The border decides what is paper and so whether the ink is darker or lighter; the
    ink is cropped, its longer side antialiased to 20 pixels, and its centre of mass put on pixel
    (14, 14), within half a pixel as in MNIST (http://yann.lecun.com/exdb/mnist/). An image which
    already is so comes back unchanged, but for the size or centre of those few that break the rule.
    Raises ImageError("no ink found") for a uniform image.
    """
    ink = _ink(_grey(image if isinstance(image, Image.Image) else _from_pixels(image)))
    if _is_normal(ink):
        return ink.astype(np.uint8)
    return _centred(_fitted(_cropped(ink)))


def _decode(data: bytes, name: str, max_pixels: int) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise ImageError(f"{name}: {size} is more than {max_pixels} pixels")
            return _pixels(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a PNG or JPEG image") from None
    except Exception as fault:  # Pillow's decoders raise almost anything on hostile bytes
        raise ImageError(f"{name}: cannot be decoded: {fault}") from fault


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """8-bit grey, RGB or RGBA pixels of an image of any mode."""
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    if image.mode.startswith(("I", "F")):
        return _eight_bit(np.asarray(image, dtype=np.float32))
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _eight_bit(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of 16-bit or float pixels: 0 ... 65535 where any is above 255, else 0 ... 255 already."""
    scale = 257.0 if values.max() > 255.0 else 1.0
    levels: NDArray[np.uint8] = np.clip(np.rint(values / scale), 0, 255).astype(np.uint8)
    return levels


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype != np.uint8:
        raise ImageError(f"pixels are {pixels.dtype}, expected uint8")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.size == 0 or not (pixels.ndim == 2 or colour):
        raise ImageError(f"pixels are shaped {pixels.shape}, expected (H, W), (H, W, 3 or 4)")
    return Image.fromarray(pixels)


def _grey(image: Image.Image) -> NDArray[np.float32]:
    """Grey levels 0 ... 255, the longer side at most 1024, transparency laid on fitting paper."""
    pixels = _pixels(image)
    if pixels.ndim == 2:
        return np.asarray(_shrunk(Image.fromarray(pixels)), dtype=np.float32)
    shrunk = _shrunk(Image.fromarray(pixels))
    grey = np.asarray(shrunk.convert("L"), dtype=np.float32)
    if pixels.shape[2] == 3:
        return grey
    alpha = np.asarray(shrunk.getchannel("A"), dtype=np.float32) / 255.0
    laid: NDArray[np.float32] = grey * alpha + _paper(grey, alpha) * (1.0 - alpha)
    return laid


def _shrunk(image: Image.Image) -> Image.Image:
    factor = -(-max(image.size) // _WORKING_SIDE)
    return image.reduce(factor) if factor > 1 else image


def _paper(grey: NDArray[np.float32], alpha: NDArray[np.float32]) -> float:
    """The grey to lay under a transparent image.

    A card with a digit on it, dark and light both opaque, goes on its own colour; bare strokes go
    on the opposite of theirs, as black ink was drawn for white paper and white ink for black.
    """
    opaque = grey[alpha >= 0.5]
    if opaque.size == 0:
        opaque = grey[alpha > 0.0]
    if opaque.size == 0:
        return 0.0
    middle = float(np.median(opaque))
    if opaque.max() - opaque.min() > 128.0:
        return middle
    return 255.0 if middle < 128.0 else 0.0


def _ink(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ink as white on black: what differs from the paper seen at the border, 0 ... 255.

    Paper as uneven as its border shows (nine median deviations, about six sigma) counts as none.
    """
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = float(np.median(border))
    lighter = float(grey.max()) - paper
    darker = paper - float(grey.min())
    signed = grey - paper if lighter >= darker else paper - grey
    ink: NDArray[np.float32] = np.maximum(signed, 0.0)
    unevenness = 9.0 * float(np.median(np.abs(border - paper)))
    contrast = max(lighter, darker)
    if contrast < _MIN_CONTRAST or contrast <= unevenness:
        raise ImageError("no ink found")
    ink[ink <= unevenness] = 0.0
    return ink


def _is_normal(ink: NDArray[np.float32]) -> bool:
    if ink.shape != (SIDE, SIDE) or ink.max() < 254.0:
        return False
    top, bottom, left, right = _extent(ink > 0.0)
    y, x = _centre_of_mass(ink)
    well_sized = max(bottom - top, right - left) == BOX
    # half a pixel, and what rounding grey levels can move the centre by
    return well_sized and abs(y - CENTRE) <= 0.51 and abs(x - CENTRE) <= 0.51


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of what is true; bottom and right are exclusive."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _centre_of_mass(ink: NDArray[np.float32]) -> tuple[float, float]:
    """(row, column), in pixel indices."""
    rows, columns = ink.sum(axis=1), ink.sum(axis=0)
    total = float(rows.sum())
    y = float(rows @ np.arange(rows.size, dtype=np.float32)) / total
    return y, float(columns @ np.arange(columns.size, dtype=np.float32)) / total


def _cropped(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    top, bottom, left, right = _extent(ink > _CROP_LEVEL * ink.max())
    return ink[top:bottom, left:right]


def _fitted(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resize so that the longer side is 20 pixels, and stretch so that the whitest is 255."""
    height, width = ink.shape
    scale = BOX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = Image.fromarray(np.ascontiguousarray(ink)).resize(size, Image.Resampling.HAMMING)
    fitted = np.maximum(np.asarray(resized, dtype=np.float32), 0.0)
    stretched: NDArray[np.float32] = fitted * np.float32(255.0 / float(fitted.max()))
    return stretched


def _centred(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Paste into 28x28 with the centre of mass on pixel (14, 14), moved by whole pixels."""
    height, width = ink.shape
    y, x = _centre_of_mass(ink)
    top = min(max(round(CENTRE - y), 0), SIDE - height)
    left = min(max(round(CENTRE - x), 0), SIDE - width)
    canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = np.rint(ink).astype(np.uint8)
    return canvas
