"""MNIST's images as people would send them: enlarged, inverted, off the centre, as a JPEG; and what
photographs add. The same every time."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Page = NDArray[np.uint8]  # (H, W), dark ink on light paper

LIGHT, DARK = 255.0, 0.35  # of a photograph: its paper, and how much of that is left in a shadow


@dataclass(frozen=True, slots=True)
class Distortion:
    """How one 28x28 image becomes a file."""

    side: int = 280  # pixels of the enlarged digit's image
    quality: int = 75  # JPEG's; 0 writes a PNG
    smooth: bool = False  # enlarged bicubically, not to squares
    what: str = ""  # of KINDS, beside that

    def __str__(self) -> str:
        form = f"JPEG {self.quality}" if self.quality else "PNG"
        return ", ".join(filter(None, (f"{self.side} px", form, "smooth" * self.smooth, self.what)))

    def file(self, image: NDArray[np.uint8], random: np.random.Generator) -> bytes:
        """The image, white on black, as dark ink on a larger sheet of paper."""
        way = Image.Resampling.BICUBIC if self.smooth else Image.Resampling.NEAREST
        digit = np.asarray(Image.fromarray(image).resize((self.side, self.side), way))
        page = np.full((self.side * 5 // 4, self.side * 3 // 2), 255, np.uint8)
        top, left = (random.integers(0, room + 1) for room in np.array(page.shape) - self.side)
        page[top : top + self.side, left : left + self.side] -= digit
        if self.what:
            page = KINDS[self.what](page, random)
        buffer = io.BytesIO()
        kind, options = ("JPEG", {"quality": self.quality}) if self.quality else ("PNG", {})
        Image.fromarray(page).save(buffer, kind, **options)
        return buffer.getvalue()


def shadow(page: Page, random: np.random.Generator) -> Page:
    """Paper lit from one side, with a hand's shadow that ends within a twentieth of the side, and a
    camera's noise."""
    angle, place = random.uniform(0, 2 * np.pi), random.uniform(-0.3, 0.3)  # nosec B311 # no secret
    rows, columns = (np.linspace(-0.5, 0.5, side) for side in page.shape)
    along = rows[:, np.newaxis] * np.sin(angle) + columns * np.cos(angle)
    light = (0.85 + 0.2 * along) * (1 - DARK * np.clip((along - place) * 20, 0, 1))
    ink = 0.15 + 0.85 * (page / LIGHT)  # it shines a little
    lit = LIGHT * light * ink + random.normal(0, 3, page.shape)
    photograph: Page = np.clip(lit, 0, 255).astype(np.uint8)
    return photograph


def dust(page: Page, random: np.random.Generator) -> Page:
    """A dozen specks, and a thin frame at the border."""
    page = page.copy()
    size = max(1, page.shape[0] // 120)
    for _ in range(12):
        top, left = (random.integers(0, side - size) for side in page.shape)
        page[top : top + size, left : left + size] = 40
    page[:size] = page[-size:] = 0
    page[:, :size] = page[:, -size:] = 0
    return page


def pen(change: ImageFilter.RankFilter) -> Callable[[Page, np.random.Generator], Page]:
    """Strokes that are thinner or thicker."""
    return lambda page, _: np.asarray(Image.fromarray(page).filter(change))


KINDS: dict[str, Callable[[Page, np.random.Generator], Page]] = {
    "shadow": shadow,
    "dust and a frame": dust,
    "thin pen": pen(ImageFilter.MaxFilter(15)),
    "thick pen": pen(ImageFilter.MinFilter(15)),
}
