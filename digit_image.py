"""Any image of one digit, made into what MNIST would have held; used by training and by serving.

Owns normalisation; `image_file` decodes. Knows nothing of models or transports; numpy and Pillow
only.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from image_file import MAX_PIXELS, ImageError, decode, pixels_of, read_image

__all__ = ["BOX", "MAX_PIXELS", "SIDE", "ImageError", "normalise", "read_digit", "read_image"]

SIDE = 28  # MNIST's image
BOX = 20  # MNIST's digit, its longer side
CENTRE = 14.0  # the pixel index on which MNIST puts the centre of mass

_MIN_CONTRAST = 16.0  # grey levels; less than this is paper, not ink
_CROP_LEVEL = 0.1  # of the contrast; fainter pixels do not widen the crop
_BAND = 20  # the border's width is one in so many of the shorter side's pixels
_SPECK = 0.02  # of all ink; strokes that have less are dust
# Uneven paper is looked at on so small a side, and what is wider than the window is no ink there.
_LIGHT_SIDE, _LIGHT_WINDOW = 64, 21
_UNEVEN_CROP_LEVEL = 0.25  # of the contrast: what is left of shadows' edges is fainter
_UNEVEN_STROKE = 0.6  # of the darkest stroke; one that is nowhere so dark is a corner of a shadow
# MNIST's pen is about 2.5 of the 20 pixels wide. One that is thinner than this is made wider, on a
# side of so many pixels.
_THIN, _PEN, _PEN_SIDE = 0.7, 2.0, 80

Level = TypeVar("Level", bound=np.generic)


def read_digit(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`normalise` a PNG or JPEG file's bytes."""
    return normalise(decode(data, max_pixels=max_pixels))


def normalise(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give one digit as MNIST holds it: (28, 28), 0 black ... 255 white ink.

    Takes a Pillow image of any mode, or uint8 (or bool) pixels shaped (H, W), (H, W, 1), (H, W, 3)
    or (H, W, 4). The border decides what is paper and so whether the ink is darker or lighter;
    shadows are evened out, and dust and frames are left out; the ink is cropped, its longer side
    antialiased to 20 pixels, and its centre of mass put on pixel (14, 14), within half a pixel as
    in MNIST (http://yann.lecun.com/exdb/mnist/). An image which already is so comes back unchanged,
    but for the size or centre of those few that break the rule. Raises ImageError("no ink found")
    for a uniform image.
    """
    grey = _grey(image if isinstance(image, Image.Image) else _from_pixels(image))
    uneven = _unevenness(_border(grey)) > _MIN_CONTRAST
    ink = _ink(_evenly_lit(grey), _UNEVEN_CROP_LEVEL) if uneven else _ink(grey)
    if _is_normal(ink):
        return ink.astype(np.uint8)
    return _centred(_fitted(_cropped(_without_dust(ink, uneven))))


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
    """Grey levels 0 ... 255, the longer side at most 512, transparency laid on fitting paper."""
    pixels = pixels_of(image)
    if pixels.ndim == 2:
        return pixels.astype(np.float32)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)
    alpha = pixels[:, :, 3].astype(np.float32) / np.float32(255.0)
    laid: NDArray[np.float32] = grey * alpha + _paper(grey, alpha) * (1.0 - alpha)
    return laid


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


def _ink(grey: NDArray[np.float32], faintest: float = 0.0) -> NDArray[np.float32]:
    """Ink as white on black: what differs from the paper seen at the border, 0 ... 255.

    Paper as uneven as its border shows (nine median deviations, about six sigma) counts as none,
    and so does what is fainter than that share of the contrast.
    """
    border = _border(grey)
    paper, unevenness = float(np.median(border)), _unevenness(border)
    lighter, darker = float(grey.max()) - paper, paper - float(grey.min())
    contrast = max(lighter, darker)
    if contrast < _MIN_CONTRAST or contrast <= unevenness:
        raise ImageError("no ink found")
    ink: NDArray[np.float32] = np.maximum(grey - paper if lighter >= darker else paper - grey, 0)
    ink[ink <= max(unevenness, faintest * contrast)] = 0.0
    return ink


def _border(grey: NDArray[Level]) -> NDArray[Level]:
    """Its pixels: more than a thin frame has."""
    wide = max(1, min(grey.shape) // _BAND)
    sides = grey[:wide], grey[-wide:], grey[wide:-wide, :wide], grey[wide:-wide, -wide:]
    return np.concatenate([side.ravel() for side in sides])


def _unevenness(border: NDArray[np.float32]) -> float:
    return 9.0 * float(np.median(np.abs(border - np.median(border))))


def _evenly_lit(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """What was drawn, as if all the paper had the same light.

    The paper behind the ink is taken for what is around it: grey morphology, on a small image,
    closes what is narrower than the window and leaves the edge of a shadow.
    """
    border = _border(grey)
    darkest, lightest = np.percentile(border, (5, 95))
    dark_ink = darkest - float(grey.min()) >= float(grey.max()) - lightest
    picture = Image.fromarray(grey if dark_ink else 255.0 - grey).convert("L")
    size = tuple(max(1, side * _LIGHT_SIDE // max(picture.size)) for side in picture.size)
    small = picture.resize((size[0], size[1]), Image.Resampling.BOX)
    closed = small.filter(ImageFilter.MaxFilter(_LIGHT_WINDOW))
    closed = closed.filter(ImageFilter.MinFilter(_LIGHT_WINDOW))
    paper = closed.convert("F").resize(picture.size, Image.Resampling.BILINEAR)
    shares = np.asarray(picture, dtype=np.float32) / np.maximum(np.asarray(paper), 1.0)
    lit: NDArray[np.float32] = np.minimum(shares, 1.0) * np.float32(255.0)
    return lit


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


def _without_dust(ink: NDArray[np.float32], uneven: bool) -> NDArray[np.float32]:
    """Without specks, and without what lies in the border alone, such as a frame, where there is
    anything else; on uneven paper, without what reaches the border or is faint: corners of shadows.
    """
    stroke = _strokes(ink > _CROP_LEVEL * ink.max())  # 0 is none
    mass: NDArray[np.float64] = np.bincount(stroke.ravel(), ink.ravel()).astype(np.float64)
    mass[0] = 0.0
    high, wide = (max(1, side // _BAND) for side in ink.shape)
    inner = np.zeros(len(mass), np.bool_)
    inner[stroke[high:-high, wide:-wide].ravel()] = True
    _drop(mass, ~inner)
    if uneven:
        _drop(mass, np.isin(np.arange(len(mass)), _border(stroke)))
        darkest = np.zeros(len(mass), np.float32)
        np.maximum.at(darkest, stroke.ravel(), np.where(mass[stroke] > 0, ink, 0).ravel())
        _drop(mass, darkest < _UNEVEN_STROKE * darkest.max())
    _drop(mass, mass < _SPECK * mass.sum())  # a page of nothing but specks keeps them
    kept = mass > 0.0
    kept[0] = True
    left: NDArray[np.float32] = np.where(kept[stroke], ink, np.float32(0))
    return left


def _drop(mass: NDArray[np.float64], strokes: NDArray[np.bool_]) -> None:
    """Take the mass of these strokes for none, where that leaves any."""
    if mass[~strokes].any():
        mass[strokes] = 0.0


def _strokes(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The pixels that touch each other, be it by a corner, numbered alike, from 1; 0 is no ink."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    root = _joined(len(rows), *_touching(rows, starts, ends, mask.shape[1] + 2))
    number = np.unique(root, return_inverse=True)[1] + 1
    numbered = np.zeros(mask.shape, np.intp)
    numbered[mask] = np.repeat(number, ends - starts)
    return numbered


def _touching(
    rows: NDArray[np.intp], starts: NDArray[np.intp], ends: NDArray[np.intp], wide: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of runs, by index, of which the second touches the first from the row above it."""
    above = (rows - 1) * wide
    first = np.searchsorted(rows * wide + ends, above + starts, side="left")
    last = np.searchsorted(rows * wide + starts, above + ends, side="right")
    counts = np.maximum(last - first, 0)
    run = np.repeat(np.arange(len(rows)), counts)
    nth = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    return run, np.repeat(first, counts) + nth


def _joined(count: int, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of `count` runs, the lowest that it hangs together with by the pairs."""
    root = np.arange(count)
    while True:
        lowest = np.minimum(root[one], root[other])
        before = root.copy()
        np.minimum.at(root, root[one], lowest)
        np.minimum.at(root, before[other], lowest)
        root = root[root]
        if np.array_equal(root, before):
            return root


def _cropped(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    top, bottom, left, right = _extent(ink > _CROP_LEVEL * ink.max())
    return ink[top:bottom, left:right]


def _fitted(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resize so that the longer side is 20 pixels, and stretch so that the whitest is 255."""
    if _pen_width(ink) * BOX / max(ink.shape) < _THIN and max(ink.shape) > _PEN_SIDE:
        ink = _thickened(_resized(ink, _PEN_SIDE))
    return _resized(ink, BOX)


def _resized(ink: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    height, width = ink.shape
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = Image.fromarray(np.ascontiguousarray(ink)).resize(size, Image.Resampling.HAMMING)
    fitted = np.maximum(np.asarray(resized, dtype=np.float32), 0.0)
    stretched: NDArray[np.float32] = fitted * np.float32(255.0 / float(fitted.max()))
    return stretched


def _pen_width(ink: NDArray[np.float32]) -> float:
    """In pixels, about: a line's area is its length times that, its outline twice its length."""
    mask = np.pad(ink > 0.5 * ink.max(), 1)
    steps = np.count_nonzero(np.diff(mask, axis=0)) + np.count_nonzero(np.diff(mask, axis=1))
    outline = steps * np.pi / 4  # of a line in any direction, as stairs are longer
    return float(2 * np.count_nonzero(mask) / outline)


def _thickened(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """As MNIST's pen would have drawn it, of a longer side of _PEN_SIDE."""
    missing = _PEN * _PEN_SIDE / BOX - _pen_width(ink)
    reach = max(0, round(missing / 2))
    wider = (
        Image.fromarray(np.pad(ink, reach))
        .convert("L")
        .filter(ImageFilter.MaxFilter(2 * reach + 1))
    )
    thick: NDArray[np.float32] = np.asarray(wider, dtype=np.float32)
    return thick


def _centred(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Paste into 28x28 with the centre of mass on pixel (14, 14), moved by whole pixels."""
    height, width = ink.shape
    y, x = _centre_of_mass(ink)
    top = min(max(round(CENTRE - y), 0), SIDE - height)
    left = min(max(round(CENTRE - x), 0), SIDE - width)
    canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = np.rint(ink).astype(np.uint8)
    return canvas
