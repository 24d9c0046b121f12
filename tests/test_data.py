"""Data sources, on real handwritten digits: splits, checksums, and one clear line per fault."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from training.bundled import read_digits
from training.data import (
    DataError,
    Dataset,
    Split,
    default_cache_dir,
    load_dataset,
    parse_classes,
)
from training.dataset import calibration_indices
from training.idx import TRAIN, VALID, parse_images, parse_labels, read_mnist
from training.mirrors import Published

TEN = tuple("0123456789")
THREES_AND_SEVENS = ("3", "7")


@pytest.fixture(scope="session")
def digits() -> tuple[Split, Split]:
    """Train and valid of the digits in scikit-learn; here labels are the digits themselves."""
    return read_digits(TEN)


@pytest.fixture
def idx_folder(tmp_path: Path, digits: tuple[Split, Split]) -> Path:
    """A folder with the four files of MNIST, gzipped, holding scikit-learn's digits."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for stems, split in zip((TRAIN, VALID), digits, strict=True):
        for stem, content in zip(stems, idx_contents(split), strict=True):
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def sample_folder(tmp_path: Path, digits: tuple[Split, Split]) -> Path:
    """A folder as fastai's MNIST_SAMPLE, of scikit-learn's threes and sevens."""
    return write_folder(tmp_path / "mnist_sample", *digits)


def idx_contents(split: Split) -> tuple[bytes, bytes]:
    images = struct.pack(">4I", 0x803, len(split.images), 28, 28) + split.images.tobytes()
    labels = struct.pack(">2I", 0x801, len(split.labels))
    return images, labels + split.labels.astype(np.uint8).tobytes()


def write_folder(folder: Path, *splits: Split) -> Path:
    """Name each PNG by its index among all images, as fastai does."""
    for part, split in zip(("train", "valid"), splits, strict=True):
        for number in np.flatnonzero(np.isin(split.labels, (3, 7))):
            place = folder / part / str(split.labels[number])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[number]).save(place / f"{number}.png")
    return folder


def md5_of(folder: Path) -> dict[str, str]:
    stems = (*TRAIN, *VALID)
    contents = (gzip.decompress((folder / f"{stem}.gz").read_bytes()) for stem in stems)
    sums = (hashlib.md5(content).hexdigest() for content in contents)
    return dict(zip(stems, sums, strict=True))


def load_idx(folder: Path, classes: tuple[str, ...] = THREES_AND_SEVENS) -> Dataset:
    """Load a folder of intact IDX files as the source mnist."""
    return load_dataset("mnist", classes, folder, published=Published((), md5_of(folder)))


def archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return path


def assert_same(one: Split, other: Split) -> None:
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


def right_by_similarity(train: Split, valid: Split) -> list[int]:
    """Images of each of two classes nearest, by mean absolute difference, to their own mean."""
    pixels = train.images.astype(np.float32) / 255.0
    means = [pixels[train.labels == label].mean(axis=0) for label in (0, 1)]
    seen = valid.images.astype(np.float32) / 255.0
    distances = np.stack([np.abs(seen - mean).mean(axis=(1, 2)) for mean in means])
    right = distances.argmin(axis=0) == valid.labels
    return [int(right[valid.labels == label].sum()) for label in (0, 1)]


# Classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3,7", ("3", "7")),
        ("7, 3", ("7", "3")),
        ("0-9", TEN),
        ("1,3-5", ("1", "3", "4", "5")),
        ("9-11", ("9", "10", "11")),
        ("cat,left-hand", ("cat", "left-hand")),
    ],
)
def test_classes_are_read_in_the_order_written(text: str, expected: tuple[str, ...]) -> None:
    assert parse_classes(text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "classes '': '' is neither a class nor a range such as 0-9"),
        ("3", "classes '3': at least two are needed"),
        ("3,,7", "classes '3,,7': '' is neither a class nor a range such as 0-9"),
        ("3,7,3", "classes '3,7,3': '3' is there twice"),
        ("0-4,4", "classes '0-4,4': '4' is there twice"),
        ("5-1", "classes '5-1': '5-1' is not a range from low to high"),
        ("0-99999999", "classes '0-99999999': '0-99999999' is not a range from low to high"),
        ("3-,7", "classes '3-,7': '3-' is neither a class nor a range such as 0-9"),
        ("../x,7", "classes '../x,7': '../x' is neither a class nor a range such as 0-9"),
    ],
)
def test_nonsense_in_classes_is_named(text: str, fault: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_classes(text)
    assert str(raised.value) == fault


@given(st.lists(st.sampled_from(TEN), min_size=2, unique=True))
def test_any_distinct_digits_are_classes(names: list[str]) -> None:
    assert parse_classes(",".join(names)) == tuple(names)


@pytest.mark.parametrize("source", ["mnist", "digits", "auto"])
def test_a_class_that_is_no_digit_is_refused_without_a_download(
    source: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"has no class 'cat': its classes are 0 to 9"):
        load_dataset(source, ("cat", "7"), cache_dir=tmp_path)


# The digits inside scikit-learn


def test_digits_are_split_by_class_into_fifths(tmp_path: Path) -> None:
    dataset = load_dataset("digits", TEN, cache_dir=tmp_path)
    sizes = [len(s.labels) for s in (dataset.train, dataset.calibration, dataset.valid)]
    assert sizes == [1302, 140, 355]
    assert np.bincount(dataset.calibration.labels).tolist() == [14] * 10
    assert dataset.origin == "digits, bundled with scikit-learn: chosen"


def test_digits_look_like_mnist(digits: tuple[Split, Split]) -> None:
    images = digits[0].images
    heights = [int(np.ptp(np.flatnonzero(image.any(axis=1)))) + 1 for image in images]
    widths = [int(np.ptp(np.flatnonzero(image.any(axis=0)))) + 1 for image in images]
    longest = np.maximum(heights, widths)
    assert longest.max() == 20
    assert (longest >= 19).mean() == 1.0
    assert 25.0 < images.mean() < 40.0  # MNIST's mean is 33.3


def test_labels_are_indices_into_the_classes_as_ordered(tmp_path: Path) -> None:
    one = load_dataset("digits", ("3", "7"), cache_dir=tmp_path)
    other = load_dataset("digits", ("7", "3"), cache_dir=tmp_path)
    np.testing.assert_array_equal(one.train.images, other.train.images)
    np.testing.assert_array_equal(one.train.labels, 1 - other.train.labels)
    assert one.checksum != other.checksum


def test_loading_twice_gives_the_same(tmp_path: Path) -> None:
    one, other = (load_dataset("digits", ("3", "7"), cache_dir=tmp_path) for _ in range(2))
    assert one.checksum == other.checksum
    assert_same(one.calibration, other.calibration)
    assert_same(one.train, other.train)


# Calibration


def test_calibration_is_every_20th_of_a_large_class_and_every_10th_of_a_small_one() -> None:
    labels = np.repeat(np.array([0, 1, 2]), [1000, 30, 4])
    assert calibration_indices(labels).tolist() == [
        *range(19, 1000, 20),
        1009,
        1019,
        1029,
        1033,
    ]


def test_train_and_calibration_share_no_image_and_lose_none(idx_folder: Path) -> None:
    dataset = load_idx(idx_folder, TEN)
    whole, _ = read_mnist(idx_folder, TEN, md5_of(idx_folder))
    held = calibration_indices(whole.labels)
    assert_same(dataset.calibration, whole.at(held))
    assert_same(dataset.train, whole.at(np.setdiff1d(np.arange(len(whole.labels)), held)))


# IDX files


def test_idx_files_give_their_images_in_file_order(
    idx_folder: Path, digits: tuple[Split, Split]
) -> None:
    train, valid = read_mnist(idx_folder, TEN, md5_of(idx_folder))
    assert_same(train, digits[0])
    assert_same(valid, digits[1])
    assert load_idx(idx_folder).origin == f"mnist: read from {idx_folder}"


def test_idx_files_may_be_unzipped_and_spelled_with_a_dot(idx_folder: Path) -> None:
    expected, md5 = load_idx(idx_folder), md5_of(idx_folder)
    for path in list(idx_folder.iterdir()):
        content = gzip.decompress(path.read_bytes())
        (idx_folder / path.stem.replace("-idx", ".idx")).write_bytes(content)
        path.unlink()
    dataset = load_dataset("mnist", ("3", "7"), idx_folder, published=Published((), md5))
    assert dataset.checksum == expected.checksum


def test_auto_takes_the_cache_without_asking_a_mirror(idx_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    published = Published((), md5_of(idx_folder))
    idx_folder.rename(cache / "mnist")
    dataset = load_dataset("auto", ("3", "7"), cache_dir=cache, published=published)
    assert dataset.origin == f"mnist: auto found it in the cache {cache / 'mnist'}"


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_damaged_file_of_the_cache_is_named_with_the_remedy(
    idx_folder: Path, tmp_path: Path, source: str
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    published = Published((), md5_of(idx_folder))
    idx_folder.rename(cache / "mnist")
    path = cache / "mnist" / f"{TRAIN[0]}.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as raised:
        load_dataset(source, ("3", "7"), cache_dir=cache, published=published)
    fault, remedy = "truncated gzip file", "delete that file of the cache to download it anew"
    assert str(raised.value) == f"{path}: {fault}; {remedy}"


def broken(folder: Path, name: str, data: bytes) -> str:
    """The message for a folder of which one gzipped file's bytes are replaced."""
    md5 = md5_of(folder)
    (folder / name).write_bytes(data)
    with pytest.raises(DataError) as raised:
        load_dataset("auto", ("3", "7"), folder, published=Published((), md5))
    return str(raised.value)


def test_a_truncated_gz_is_named(idx_folder: Path) -> None:
    path = idx_folder / f"{TRAIN[0]}.gz"
    message = broken(idx_folder, path.name, path.read_bytes()[:-1000])
    assert message == f"{path}: truncated gzip file"


def test_a_corrupted_gz_is_named(idx_folder: Path) -> None:
    path = idx_folder / f"{TRAIN[0]}.gz"
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # in gzip's own checksum
    message = broken(idx_folder, path.name, bytes(data))
    assert message.startswith(f"{path}: corrupted gzip file: CRC check failed")


def test_a_header_that_promises_more_than_the_file_has_is_named(
    idx_folder: Path, digits: tuple[Split, Split]
) -> None:
    content = idx_contents(digits[1])[0][:-784]
    message = broken(idx_folder, f"{VALID[0]}.gz", gzip.compress(content))
    promised, found = 355 * 784, 354 * 784
    path = idx_folder / f"{VALID[0]}.gz"
    assert message == (f"{path}: header promises {promised} bytes of items, the file has {found}")


def test_a_wrong_magic_is_named(idx_folder: Path) -> None:
    path = idx_folder / f"{TRAIN[1]}.gz"
    message = broken(idx_folder, path.name, b"<html>moved</html>")
    assert message == f"{path}: starts with 0x3c68746d, expected IDX magic 0x00000801"


def test_images_of_another_size_are_named(idx_folder: Path) -> None:
    content = struct.pack(">4I", 0x803, 1, 32, 32) + bytes(1024)
    message = broken(idx_folder, f"{TRAIN[0]}.gz", content)
    assert message == f"{idx_folder / TRAIN[0]}.gz: images are 32x32, expected 28x28"


def test_a_label_out_of_range_is_named(idx_folder: Path, digits: tuple[Split, Split]) -> None:
    content = bytearray(idx_contents(digits[0])[1])
    content[8 + 5] = 12
    message = broken(idx_folder, f"{TRAIN[1]}.gz", bytes(content))
    path = idx_folder / f"{TRAIN[1]}.gz"
    assert message == f"{path}: label 12 of item 5 is out of range 0 to 9"


def test_differing_counts_of_images_and_labels_are_named(
    idx_folder: Path, digits: tuple[Split, Split]
) -> None:
    fewer = digits[0].at(np.arange(1000))
    message = broken(idx_folder, f"{TRAIN[1]}.gz", idx_contents(fewer)[1])
    labels, images = (f"{stem}.gz" for stem in reversed(TRAIN))
    assert message == f"{idx_folder / labels}: 1000 labels for the 1442 images of {images}"


def test_another_set_than_mnist_is_refused_with_both_sums(idx_folder: Path) -> None:
    path = idx_folder / f"{TRAIN[0]}.gz"
    actual = md5_of(idx_folder)[TRAIN[0]]
    with pytest.raises(DataError) as raised:
        load_dataset("mnist", ("3", "7"), idx_folder)
    expected = "6bbc9ace898e44ae57da46a324031adb"
    assert str(raised.value) == (
        f"{path}: not MNIST's file: content has md5 {actual}, expected {expected}"
    )


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_data_directory_that_is_given_but_missing_is_an_error(
    source: str, tmp_path: Path
) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(DataError) as raised:
        load_dataset(source, ("3", "7"), missing)
    assert str(raised.value) == f"{missing}: no such directory"


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_data_directory_without_mnist_is_an_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_dataset(source, ("3", "7"), tmp_path)
    assert str(raised.value) == f"{tmp_path}: has no train-images-idx3-ubyte[.gz]"


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_no_idx_file_but_by_a_right_header(content: bytes) -> None:
    with pytest.raises(DataError):
        parse_images(Path("file"), content + b"x")
    with pytest.raises(DataError):
        parse_labels(Path("file"), b"\x01" + content)


# Folders of PNGs


def test_a_folder_and_its_archive_agree_with_idx_files_of_the_same_images(
    idx_folder: Path, sample_folder: Path, tmp_path: Path
) -> None:
    expected = load_idx(idx_folder)
    archived = archive(sample_folder, tmp_path / "mnist_sample.tgz")
    for path in (sample_folder, archived, tmp_path):
        dataset = load_dataset("mnist_sample", ("3", "7"), path)
        assert dataset.checksum == expected.checksum
        assert_same(dataset.train, expected.train)
        assert_same(dataset.calibration, expected.calibration)
        assert_same(dataset.valid, expected.valid)


def test_auto_takes_the_folder_it_is_given(sample_folder: Path) -> None:
    dataset = load_dataset("auto", ("3", "7"), sample_folder)
    assert dataset.name == "mnist_sample"
    assert dataset.origin == f"mnist_sample: chosen by auto, read from {sample_folder}"


def test_classes_of_a_folder_are_the_names_of_its_folders(sample_folder: Path) -> None:
    for part in ("train", "valid"):
        (sample_folder / part / "3").rename(sample_folder / part / "three")
    dataset = load_dataset("mnist_sample", ("7", "three"), sample_folder)
    assert dataset.labels == ("7", "three")
    assert np.bincount(dataset.valid.labels).tolist() == [35, 36]


def test_files_that_are_no_png_are_passed_over(sample_folder: Path) -> None:
    before = load_dataset("mnist_sample", ("3", "7"), sample_folder).checksum
    (sample_folder / "train" / "3" / "notes.txt").write_text("not an image")
    (sample_folder / "train" / "3" / "._1.png").write_bytes(b"a file of macOS")
    assert load_dataset("mnist_sample", ("3", "7"), sample_folder).checksum == before


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (png(np.zeros((28, 30), np.uint8)), "image is 30x28, expected 28x28"),
        (png(np.zeros((28, 28, 3), np.uint8)), "image is RGB, expected 8-bit grayscale"),
        (b"no image at all", "not a PNG image"),
        (bytes(70_000), "larger than 65536 bytes"),
    ],
)
@pytest.mark.parametrize("archived", [False, True])
def test_a_bad_png_is_named(
    data: bytes, fault: str, archived: bool, sample_folder: Path, tmp_path: Path
) -> None:
    bad = sample_folder / "train" / "3" / "99999.png"
    bad.write_bytes(data)
    tgz = tmp_path / "bad.tgz"
    path = archive(sample_folder, tgz) if archived else sample_folder
    member = "mnist_sample/train/3/99999.png"
    separator = " is " if fault.startswith("larger") else ": "
    in_archive = f"{tgz}: {member}{separator}{fault}"
    with pytest.raises(DataError) as raised:
        load_dataset("mnist_sample", ("3", "7"), path)
    assert str(raised.value) == (in_archive if archived else f"{bad}: {fault}")


def test_a_truncated_png_is_named(sample_folder: Path) -> None:
    bad = next((sample_folder / "valid" / "7").iterdir())
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(DataError) as raised:
        load_dataset("mnist_sample", ("3", "7"), sample_folder)
    assert str(raised.value).startswith(f"{bad}: damaged PNG image: ")


def test_a_class_without_a_folder_is_named(sample_folder: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_dataset("mnist_sample", ("3", "8"), sample_folder)
    folder = sample_folder / "train" / "8"
    assert str(raised.value) == f"{folder}: no such directory, so class '8' has no images"


@pytest.mark.parametrize("archived", [False, True])
def test_a_class_without_images_is_named(
    archived: bool, sample_folder: Path, tmp_path: Path
) -> None:
    for path in (sample_folder / "valid" / "7").iterdir():
        path.unlink()
    tgz = tmp_path / "empty.tgz"
    path = archive(sample_folder, tgz) if archived else sample_folder
    with pytest.raises(DataError) as raised:
        load_dataset("mnist_sample", ("3", "7"), path)
    assert str(raised.value) == f"{path}: class '7' has no validation images, at least 1 needed"


def test_a_class_with_one_image_has_too_few_to_train_and_calibrate(sample_folder: Path) -> None:
    for path in list((sample_folder / "train" / "7").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match=r"class '7' has 1 training image, at least 2 needed"):
        load_dataset("mnist_sample", ("3", "7"), sample_folder)


def test_a_truncated_archive_is_named(sample_folder: Path, tmp_path: Path) -> None:
    path = archive(sample_folder, tmp_path / "mnist_sample.tgz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError) as raised:
        load_dataset("mnist_sample", ("3", "7"), path)
    assert str(raised.value) == f"{path}: truncated archive"


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mnist_sample.tgz"
    path.write_bytes(b"no archive at all")
    with pytest.raises(DataError) as raised:
        load_dataset("auto", ("3", "7"), path)
    assert str(raised.value).startswith(f"{path}: not a .tgz archive, or damaged: ")


def test_links_in_an_archive_are_not_followed(sample_folder: Path, tmp_path: Path) -> None:
    expected = load_dataset("mnist_sample", ("3", "7"), sample_folder).checksum
    link = sample_folder / "train" / "3" / "0.png"
    link.symlink_to(next((sample_folder / "train" / "7").iterdir()))
    path = archive(sample_folder, tmp_path / "mnist_sample.tgz")
    assert load_dataset("mnist_sample", ("3", "7"), path).checksum == expected


@pytest.mark.parametrize("path", [None, Path("/nowhere/mnist_sample")])
def test_mnist_sample_needs_a_place_to_read_from(path: Path | None) -> None:
    with pytest.raises(DataError) as raised:
        load_dataset("mnist_sample", ("3", "7"), path)
    assert str(raised.value) == (
        f"{path}: no such directory or .tgz file"
        if path
        else "mnist_sample needs a data directory: its folder or .tgz"
    )


# Choosing


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(DataError) as raised:
        load_dataset("cifar", ("3", "7"))
    assert str(raised.value) == (
        "unknown dataset 'cifar': expected one of auto, mnist, mnist_sample, digits"
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/var/cache", "HOME": "/home/ann"}, "/var/cache/digits"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/ann"}, "/home/ann/.cache/digits"),
        ({"HOME": "/home/ann"}, "/home/ann/.cache/digits"),
    ],
)
def test_the_cache_is_where_xdg_says(environ: dict[str, str], expected: str) -> None:
    assert default_cache_dir(environ) == Path(expected)


# MNIST itself


@pytest.mark.mnist
def test_mnist_threes_and_sevens_have_their_published_sizes(mnist_dir: Path) -> None:
    dataset = load_dataset("auto", ("3", "7"), mnist_dir)
    train, held, valid = (
        np.bincount(split.labels).tolist()
        for split in (dataset.train, dataset.calibration, dataset.valid)
    )
    assert [train[0] + held[0], train[1] + held[1]] == [6131, 6265]
    assert held == [306, 313]
    assert valid == [1010, 1028]


@pytest.mark.mnist
def test_pixel_similarity_without_the_calibration_images_gets_the_published_counts(
    mnist_dir: Path,
) -> None:
    dataset = load_dataset("mnist", ("3", "7"), mnist_dir)
    assert right_by_similarity(dataset.train, dataset.valid) == [926, 1013]


@pytest.mark.mnist
def test_mnist_gives_every_digit_calibration_images(mnist_dir: Path) -> None:
    dataset = load_dataset("mnist", TEN, mnist_dir)
    assert len(dataset.train.labels) + len(dataset.calibration.labels) == 60_000
    assert np.bincount(dataset.calibration.labels).min() == 271
    assert len(dataset.valid.labels) == 10_000


@pytest.mark.mnist
def test_mnist_and_a_folder_of_its_threes_and_sevens_are_the_same_dataset(
    mnist_dir: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "mnist_sample", *read_mnist(mnist_dir, TEN))
    sample = load_dataset("mnist_sample", ("3", "7"), folder)
    expected = load_dataset("mnist", ("3", "7"), mnist_dir)
    assert sample.checksum == expected.checksum
    assert_same(sample.train, expected.train)
    assert_same(sample.valid, expected.valid)
