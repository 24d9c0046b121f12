"""Normalisation, on real handwritten digits put into many other kinds of image."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.neighbors import KNeighborsClassifier

from digit_image import ImageError, normalise, read_digit, read_image
from training.bundled import read_digits
from training.idx import read_mnist

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def digits() -> Pixels:
    """100 real digits of 28x28, white on black, as the source digits gives them."""
    return read_digits(tuple("0123456789"))[1].images[:100]


def enlarged(digit: Pixels, factor: int = 10) -> Pixels:
    return np.kron(digit, np.ones((factor, factor), np.uint8))


def placed(digit: Pixels, paper: int = 0) -> Pixels:
    """White on paper, off the centre of a larger image."""
    canvas = np.full((400, 500), paper, np.uint8)
    big = enlarged(digit)
    canvas[20 : 20 + big.shape[0], 180 : 180 + big.shape[1]] = np.maximum(big, paper)
    return canvas


def difference(one: Pixels, other: Pixels) -> float:
    """Mean over pixels, 0 ... 255."""
    return float(np.abs(one.astype(np.float64) - other).mean())


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def centre_of_mass(image: Pixels) -> tuple[float, float]:
    rows, columns = np.indices(image.shape)
    return float(np.average(rows, weights=image)), float(np.average(columns, weights=image))


def test_a_normal_image_comes_back_unchanged(digits: Pixels) -> None:
    for digit in digits:
        np.testing.assert_array_equal(normalise(digit), digit)


def test_size_and_centre_are_mnists(digits: Pixels) -> None:
    for digit in digits:
        result = normalise(placed(digit))
        rows, columns = np.flatnonzero(result.any(axis=1)), np.flatnonzero(result.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        assert centre_of_mass(result) == pytest.approx((14.0, 14.0), abs=0.51)
        assert result.max() == 255


def test_place_and_scale_hardly_matter(digits: Pixels) -> None:
    changes = [difference(normalise(placed(digit)), normalise(digit)) for digit in digits]
    assert np.mean(changes) < 3.0


def test_dark_ink_on_light_paper_is_inverted(digits: Pixels) -> None:
    for digit in digits:
        expected = normalise(placed(digit))
        assert difference(normalise(255 - placed(digit)), expected) < 0.01


def test_ink_may_be_pale_on_grey_paper(digits: Pixels) -> None:
    for digit in digits[:20]:
        expected = normalise(placed(digit))
        pale = (150 - placed(digit) // 4).astype(np.uint8)
        assert difference(normalise(pale), expected) < 3.0


def test_uneven_paper_is_not_ink(digits: Pixels) -> None:
    noise = np.random.default_rng(0).normal(200.0, 5.0, (400, 500))
    for digit in digits[:20]:
        photo = np.clip(noise - placed(digit) * 0.7, 0, 255).astype(np.uint8)
        assert difference(normalise(photo), normalise(placed(digit))) < 8.0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_of_image_is_understood(mode: str, digits: Pixels) -> None:
    bilevel = np.where(placed(digits[3]) > 127, 255, 0).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(bilevel.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(bilevel).convert(mode)
    assert difference(normalise(image), normalise(bilevel)) < 0.5


@pytest.mark.parametrize("shape", [(400, 500), (400, 500, 1), (400, 500, 3), (400, 500, 4)])
def test_pixels_of_every_shape_are_understood(shape: tuple[int, ...], digits: Pixels) -> None:
    plain = placed(digits[7])
    pixels = np.broadcast_to(plain[..., None] if len(shape) == 3 else plain, shape).copy()
    if shape[2:] == (4,):
        pixels[..., 3] = 255
    assert difference(normalise(pixels), normalise(plain)) < 0.5


@pytest.mark.parametrize("ink", [(0, 0, 0), (20, 20, 120), (255, 255, 255), (255, 240, 120)])
def test_strokes_on_transparency_are_ink_whatever_their_colour(
    ink: tuple[int, int, int], digits: Pixels
) -> None:
    drawing = np.empty((400, 500, 4), np.uint8)
    drawing[..., :3] = ink
    drawing[..., 3] = placed(digits[2])
    assert difference(normalise(drawing), normalise(placed(digits[2]))) < 1.0


def test_a_card_with_transparent_corners_keeps_its_paper(digits: Pixels) -> None:
    grey = 255 - placed(digits[2])
    card = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=2)
    card[:30, :30] = card[-30:, -30:] = 0
    assert difference(normalise(card), normalise(grey)) < 0.01


def test_bool_pixels_are_black_and_white(digits: Pixels) -> None:
    mask = placed(digits[4]) > 127
    np.testing.assert_array_equal(
        normalise(mask.view(np.bool_)), normalise(mask.astype(np.uint8) * np.uint8(255))
    )


def test_a_large_photo_is_reduced_first(digits: Pixels) -> None:
    large = enlarged(placed(digits[5]), 8)  # 4000 x 3200
    assert difference(normalise(255 - large), normalise(placed(digits[5]))) < 3.0


@pytest.mark.parametrize("level", [0, 127, 255])
@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (300, 200), (40, 40, 3), (40, 40, 4)])
def test_a_uniform_image_has_no_ink(level: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError) as raised:
        normalise(np.full(shape, level, np.uint8))
    assert str(raised.value) == "no ink found"


def test_noisy_paper_has_no_ink() -> None:
    noise = np.random.default_rng(0).normal(200.0, 2.0, (300, 300)).astype(np.uint8)
    with pytest.raises(ImageError, match="no ink found"):
        normalise(noise)


def test_a_single_line_is_a_digit_too() -> None:
    line = np.zeros((300, 300), np.uint8)
    line[50:250, 150] = 255
    result = normalise(line)
    assert np.flatnonzero(result.any(axis=1)).tolist() == list(range(4, 24))
    assert np.count_nonzero(result.max(axis=0) > 100) == 2  # about as wide as MNIST's pen


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.zeros((28, 28)), "pixels are float64, expected uint8"),
        (np.zeros(28, np.uint8), "pixels are shaped (28,), expected (H, W), (H, W, 3 or 4)"),
        (np.zeros((0, 9), np.uint8), "pixels are shaped (0, 9), expected (H, W), (H, W, 3 or 4)"),
    ],
)
def test_pixels_that_are_no_image_are_refused(pixels: Pixels, fault: str) -> None:
    with pytest.raises(ImageError) as raised:
        normalise(pixels)
    assert str(raised.value) == fault


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_files_and_bytes_are_read_alike(kind: str, digits: Pixels, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(placed(digits[8])), kind)
    path = tmp_path / "digit"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path), read_image(data))
    assert difference(read_image(data), placed(digits[8])) < (0.01 if kind == "PNG" else 2.0)


def test_a_jpeg_gives_what_the_png_gives(digits: Pixels) -> None:
    for digit in digits[:20]:
        image = Image.fromarray(255 - placed(digit))
        png, jpeg = (normalise(read_image(encoded(image, kind))) for kind in ("PNG", "JPEG"))
        assert difference(png, jpeg) < 2.0


def test_a_photo_is_turned_upright(digits: Pixels) -> None:
    upright = Image.fromarray(placed(digits[6]))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: to be shown a quarter turn clockwise
    buffer = io.BytesIO()
    upright.rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(buffer.getvalue()), np.asarray(upright))


@pytest.mark.parametrize(("mode", "read_as"), [("L", "L"), ("RGB", "L"), ("RGBA", "RGBA")])
def test_transparency_is_kept_in_reading(mode: str, read_as: str, digits: Pixels) -> None:
    image = Image.fromarray(placed(digits[0])).convert(mode)
    np.testing.assert_array_equal(read_image(encoded(image)), np.asarray(image.convert(read_as)))


def test_sixteen_bit_pixels_are_read_as_eight(digits: Pixels) -> None:
    deep = Image.fromarray(placed(digits[0]).astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(encoded(deep)), placed(digits[0]))


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks behind its header."""
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return png[:33] + b"".join(made) + png[33:]


def test_what_is_no_picture_is_not_looked_at(digits: Pixels) -> None:
    """Bombs of text, profiles and frames, and damaged Exif data, cost and change nothing."""
    page = placed(digits[0])
    png, bomb = encoded(Image.fromarray(page)), zlib.compress(bytes(50_000_000))
    texts = [(b"zTXt", b"k\0\0" + bomb), (b"iTXt", b"k\0\1\0\0\0" + bomb)]
    others = [(b"iCCP", b"k\0\0" + bomb), (b"acTL", bytes(8)), (b"eXIf", b"II*\0\xff\xff")]
    np.testing.assert_array_equal(read_image(with_chunks(png, *texts, *others)), page)
    jpeg = encoded(Image.fromarray(page), "JPEG")
    damaged = jpeg[:2] + b"\xff\xe1\0\x10Exif\0\0MM\0*\0\0\xff\xff" + jpeg[2:]
    np.testing.assert_array_equal(read_image(damaged), read_image(jpeg))


def test_of_an_animation_the_still_picture_is_read(digits: Pixels) -> None:
    frames = [Image.fromarray(placed(digit)) for digit in digits[:3]]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(buffer.getvalue()), placed(digits[0]))


def test_a_jpeg_that_is_drawn_again_and_again_is_refused() -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    assert read_image(jpeg, max_pixels=256 * 256).shape == (256, 256)
    again = jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 30 + jpeg[-2:]
    with pytest.raises(ImageError, match=r"image: has 3[0-9] scans, more than 20"):
        read_image(again, max_pixels=256 * 256)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageError) as raised:
        read_image(encoded(Image.new("L", (28, 28)), kind))
    assert str(raised.value) == "image: not a PNG or JPEG image"


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(ImageError) as raised:
        read_image(path)
    assert str(raised.value) == f"{path}: not a PNG or JPEG image"


@pytest.mark.parametrize("size", [(5001, 5000), (10_000, 10_000), (13_400, 13_400)])
def test_an_image_of_too_many_pixels_is_refused(size: tuple[int, int]) -> None:
    bomb = encoded(Image.new("1", size))
    with pytest.raises(ImageError):
        read_image(bomb)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@given(data=st.data())
def test_damaged_files_raise_image_error_or_are_read(kind: str, data: st.DataObject) -> None:
    whole = encoded(Image.linear_gradient("L").resize((40, 40)), kind)
    cut = data.draw(st.integers(0, len(whole)))
    flip = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[flip] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ImageError):
        pixels = read_image(bytes(damaged[:cut]), max_pixels=100_000)
        assert pixels.dtype == np.uint8


def as_sent(digit: Pixels, quality: int, side: int = 280) -> bytes:
    """Dark on a larger sheet of white paper, off its centre, as a JPEG."""
    page = np.full((side * 5 // 4, side * 3 // 2), 255, np.uint8)
    big = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.NEAREST))
    page[side // 5 : side // 5 + side, :side] -= big
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [95, 75, 50, 30])
def test_a_jpeg_of_whatever_quality_hardly_changes_the_digit(quality: int, digits: Pixels) -> None:
    changes = [difference(read_digit(as_sent(digit, quality)), digit) for digit in digits[:40]]
    assert np.mean(changes) < 6.0


def test_paper_may_lie_in_the_shadow_of_a_hand(digits: Pixels) -> None:
    """A third of the light is gone on one side of a slanting edge."""
    across = np.add.outer(np.linspace(0, 1, 400), np.linspace(0, 2, 500))
    light = 1 - 0.35 * np.clip((across - 1.4) * 10, 0, 1)
    changes = []
    for digit in digits[:20]:
        photo = (255 * light * (1 - 0.8 * placed(digit) / 255)).astype(np.uint8)
        changes.append(difference(normalise(photo), normalise(placed(digit))))
    assert np.mean(changes) < 12.0


def test_dust_and_a_frame_are_no_ink(digits: Pixels) -> None:
    for digit in digits[:20]:
        page = 255 - placed(digit)
        expected = normalise(page)
        page[:4] = page[-4:] = page[:, :4] = page[:, -4:] = 0
        page[10:13, 60:63] = page[350:353, 30:33] = 0
        np.testing.assert_array_equal(normalise(page), expected)


def test_a_thin_pen_is_made_as_wide_as_mnists() -> None:
    drawn = []
    for width in (1, 10, 40):
        page = np.full((600, 600), 255, np.uint8)
        canvas = Image.fromarray(page)
        ImageDraw.Draw(canvas).line([(150, 100), (450, 100), (250, 500)], 0, width, "curve")
        drawn.append(normalise(canvas).astype(np.float64).sum())
    assert 0.4 < drawn[0] / drawn[2] < 1.2
    assert 0.4 < drawn[1] / drawn[2] < 1.2


@pytest.mark.mnist
def test_mnist_as_jpegs_is_classified_within_a_point_of_mnist(mnist_dir: Path) -> None:
    """By the nearest of 2,000 training images; benchmarks/normalisation.py asks ResNet18."""
    train, valid = read_mnist(mnist_dir, tuple("0123456789"))
    model = KNeighborsClassifier(1).fit(train.images[:2000].reshape(2000, -1), train.labels[:2000])
    plain = valid.images[:1000]
    sent = np.stack([read_digit(as_sent(image, 50)) for image in plain])
    scores = [model.score(each.reshape(1000, -1), valid.labels[:1000]) for each in (plain, sent)]
    assert scores[0] > 0.85
    assert scores[1] > scores[0] - 0.01


@pytest.mark.mnist
def test_mnist_comes_out_as_it_went_in(mnist_dir: Path) -> None:
    images = read_mnist(mnist_dir, tuple("0123456789"))[1].images
    unchanged = [np.array_equal(normalise(image), image) for image in images]
    assert sum(unchanged) >= 9_990  # of 10,000; a few have a longer side of 19 pixels
