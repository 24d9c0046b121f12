"""The contract between training and serving: a versioned model repository on disk.

Owns the layout ``<repository>/<model>/<version>/{manifest.json, model.onnx, ...}``, the Manifest
that describes one version, and how one is published. Standard library only; opens no model file.
``python -m model_repository`` is `repository_commands`, which also rolls back and prunes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HOLDOUT = "holdout.npz"
ONNX_PLATFORM = "onnx_onnxv1"
TORCHSCRIPT_PLATFORM = "pytorch_torchscript"

# Hidden entries, which no reader takes for a model or a version.
STAGING = ".staging-"  # in a repository: what is being written
WITHDRAWN = ".withdrawn-"  # in a model: a version after a rollback
PRUNED = ".pruned-"  # in either: what is being deleted

# Upper bounds of the bins that inputs and answers are counted in; one more bin lies beyond them.
# Coarse on purpose near 1: another precision or provider moves confidences there, and nothing else.
CONFIDENCE_EDGES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
INK_EDGES = (
    *(0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.35, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9),
)

# Those of the V2 protocol that a tensor may have here.
DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "FP32", "FP64", "BYTES"),
)

# What no honest manifest comes near; what is beyond it, a reader could be stalled or filled with.
MAX_MANIFEST_BYTES = 4 << 20
MAX_INTEGER = 2**63 - 1  # the widest that ONNX and protobuf have
MAX_DIMENSIONS = 64  # NumPy's
MAX_ROW_ELEMENTS = 2**31 - 1  # no message holds more bytes

# Services of grpc.health.v1 beside the models.
RESERVED_NAMES = ("readiness", "liveness", "startup")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_VERSION = re.compile(r"[1-9][0-9]*\Z")
# A version, one that a rollback withdrew, or one that is being deleted: its number is taken.
_NUMBERED = re.compile(rf"({re.escape(WITHDRAWN)}|{re.escape(PRUNED)}|)([1-9][0-9]*)\Z")
_LOCK = ".lock"


class RepositoryError(Exception):
    """A repository, version or manifest that cannot be used; the message names the path and why."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor: a V2 datatype such as "FP32" and a shape in which -1 is variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One runnable file of a version: what runs it, at which precision, how accurate it proved."""

    file: str
    platform: str
    precision: str
    sha256: str
    accuracy: float | None = None
    # Of this very file, run by ONNX Runtime on a CPU over the version's holdout.npz.
    holdout_accuracy: float | None = None
    # Where this file is not as sure of its answers as the manifest's quality has it.
    quality: Quality | None = None


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """The images a version was trained (train), quantised (calibration) and judged (valid) on."""

    name: str
    checksum: str
    train_images: int
    calibration_images: int
    valid_images: int


@dataclass(frozen=True, slots=True)
class Parity:
    """How far eager PyTorch, TorchScript and ONNX Runtime lay apart over the validation images."""

    images: int
    batch_sizes: tuple[int, ...]
    label_disagreements: int
    max_probability_difference: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Shares of rows by bin: as many as `edges`, the bins' upper bounds, and one beyond them."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Quality:
    """What a server needs to judge a version's answers without labels.

    `temperature` calibrates: with probabilities p, those of p ** (1 / temperature), made to add up
    to 1, are as often right as they say, within `expected_calibration_error`, on the calibration
    images. The distributions are those of the images that the version was made for: `ink` is a
    row's mean input from 0 to 1, `confidence` the calibrated one, `labels` the predicted classes.
    """

    temperature: float
    expected_calibration_error: float
    images: int  # that the temperature was fitted on
    ink: Distribution | None = None  # by INK_EDGES
    confidence: Distribution | None = None  # by CONFIDENCE_EDGES
    labels: tuple[float, ...] = ()  # shares, in the order of the manifest's labels


@dataclass(frozen=True, slots=True)
class Manifest:
    """Immutable facts of one published version.

    Everything with a default is optional: an absent value switches off the feature that needs it.
    Unknown keys are ignored when read, so that later versions of the format stay readable.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    files: dict[str, str]  # file name -> sha256, every file beside the manifest
    format_version: int = FORMAT_VERSION
    task: str = "classification"
    labels: tuple[str, ...] = ()
    accuracy: float | None = None
    dataset: DatasetFacts | None = None
    recipe: dict[str, object] | None = None
    parity: Parity | None = None
    quality: Quality | None = None
    source_commit: str | None = None
    created: str | None = None  # ISO 8601, UTC

    def variant(self, platform: str, precision: str) -> Variant | None:
        """The variant of that platform and precision, or None."""
        for variant in self.variants:
            if (variant.platform, variant.precision) == (platform, precision):
                return variant
        return None

    def quality_of(self, variant: Variant) -> Quality | None:
        """What is known of one variant's answers: its own, else the version's."""
        return variant.quality or self.quality


@dataclass(frozen=True, slots=True)
class Draft:
    """What a publisher knows before a version number is taken; `files` are hashed by `publish`."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]  # sha256 may be left empty
    facts: dict[str, object] = field(default_factory=dict)  # Manifest's optional fields


# Reading


def read_manifest(directory: Path) -> Manifest:
    """The validated manifest of a version directory; RepositoryError names what is wrong."""
    path = directory / MANIFEST
    try:
        data = json.loads(_read_small(path))
    except FileNotFoundError:
        raise RepositoryError(f"{path}: no manifest") from None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise RepositoryError(f"{path}: unreadable manifest: {why}") from None
    try:
        manifest = _decode(Manifest, data, "manifest")
        assert isinstance(manifest, Manifest)
        _validate(manifest)
    except ValueError as error:
        raise RepositoryError(f"{path}: {error}") from None
    return manifest


def _read_small(path: Path) -> bytes:
    """A regular file's content; a link could make the reader tell what is in another's file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        content = stream.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
    return content


def require_inside(repository: Path, directory: Path) -> None:
    """Raise RepositoryError where links lead from a version's path to outside the repository."""
    try:
        found = directory.resolve(strict=True)
        inside = found.is_relative_to(repository.resolve(strict=True))
    except (OSError, RuntimeError) as error:  # which a loop of links was before Python 3.13
        raise RepositoryError(f"{directory}: cannot be followed: {error}") from None
    if not inside:
        raise RepositoryError(f"{directory}: is a link that leads out of the repository")


def model_names(repository: Path) -> list[str]:
    """Names of the models that have at least one version, sorted."""
    return [name for name in possible_names(repository) if versions(repository / name)]


def possible_names(repository: Path) -> list[str]:
    """Names in the repository that a model may have, sorted; looks into none of them."""
    if not repository.is_dir():
        raise RepositoryError(f"{repository}: no such model repository")
    names = (entry.name for entry in repository.iterdir() if _NAME.match(entry.name))
    return sorted(name for name in names if name not in RESERVED_NAMES)


def versions(model_directory: Path) -> list[int]:
    """Published version numbers of one model, ascending; temporary and foreign entries are not."""
    if not model_directory.is_dir():
        return []
    entries = (entry for entry in model_directory.iterdir() if _VERSION.match(entry.name))
    return sorted(int(entry.name) for entry in entries if _has_manifest(entry))


def _has_manifest(directory: Path) -> bool:
    """Whatever it is, or where it cannot be looked for: who reads the manifest will say why."""
    try:
        (directory / MANIFEST).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def numbered(model_directory: Path, prefix: str) -> list[int]:
    """Numbers of the entries named `prefix` and a version number, ascending."""
    matches = (_NUMBERED.match(entry.name) for entry in model_directory.iterdir())
    return sorted(int(match[2]) for match in matches if match and match[1] == prefix)


def version_directories(path: Path) -> list[Path]:
    """Version directories under a repository, a model or a version, by name, then number."""
    if (path / MANIFEST).is_file():
        return [path]
    own = versions(path)
    if own:
        return [path / str(version) for version in own]
    names = model_names(path)
    return [path / name / str(version) for name in names for version in versions(path / name)]


def faults(directory: Path) -> list[str]:
    """What differs between a version's manifest and its files; empty when every hash matches."""
    try:
        return _differences(directory, read_manifest(directory))
    except (RepositoryError, OSError) as error:
        return [str(error)]


def _differences(directory: Path, manifest: Manifest) -> list[str]:
    found = [fault for name in manifest.files if (fault := _file_fault(directory, manifest, name))]
    extra = {entry.name for entry in directory.iterdir()} - set(manifest.files) - {MANIFEST}
    return found + [f"{directory / name}: not in the manifest" for name in sorted(extra)]


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_fault(directory: Path, manifest: Manifest, name: str) -> str | None:
    path = directory / name
    if path.is_symlink() or not path.is_file():
        return f"{path}: missing or not a regular file"
    actual = sha256(path)
    if actual != manifest.files[name]:
        return f"{path}: sha256 is {actual}, the manifest says {manifest.files[name]}"
    return None


# Publishing


def require_model_name(name: str) -> None:
    """Raise RepositoryError for what cannot be a model's name."""
    if name in RESERVED_NAMES:
        raise RepositoryError(f"{name!r}: is the name of a health service, not a model's")
    if not _NAME.match(name):
        raise RepositoryError(
            f"{name!r}: a model name starts with a letter or digit and holds only those,"
            " '_', '-' and '.'"
        )


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A temporary directory inside the repository to write one version's files into.

    Removed when left; readers never see it, because its name is no model's.
    """
    repository.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=STAGING, dir=repository))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(directory: Path, draft: Draft) -> Path:
    """Turn a staging directory into the model's next version and return its path.

    Hashes and fsyncs every file, writes the manifest, then renames, under the model's lock. Nothing
    is ever overwritten, and no number given twice: withdrawn and half-deleted versions count.
    """
    require_model_name(draft.name)
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    for path in directory.iterdir():
        fsync(path)
    directory.chmod(0o755)  # mkdtemp made it private; the server may run as another user
    model_directory = directory.parent / draft.name
    model_directory.mkdir(exist_ok=True)
    with locked(model_directory):
        target = _take_number(directory, model_directory, draft, files)
        fsync(model_directory)
    fsync(directory.parent)
    return target


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a model's or repository's lock against other writers; readers need none.

    Taken back by the system when a process dies.
    """
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _take_number(
    directory: Path, model_directory: Path, draft: Draft, files: dict[str, str]
) -> Path:
    """Rename onto the next number; one that a writer without the lock took is passed over."""
    matches = (_NUMBERED.match(entry.name) for entry in model_directory.iterdir())
    taken = (int(match[2]) for match in matches if match)
    version = max((number for number in taken if number < MAX_INTEGER), default=0) + 1
    while True:
        _write_manifest(directory, _manifest(draft, version, files))
        target = model_directory / str(version)
        if _rename(directory, target):
            return target
        version += 1


def _manifest(draft: Draft, version: int, files: dict[str, str]) -> Manifest:
    variants = tuple(
        dataclasses.replace(variant, sha256=files[variant.file]) for variant in draft.variants
    )
    fixed = {"inputs": draft.inputs, "outputs": draft.outputs, "variants": variants}
    values: dict[str, typing.Any] = {**draft.facts, **fixed}
    manifest = Manifest(name=draft.name, version=version, files=files, **values)
    _validate(manifest)
    return manifest


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n", encoding="utf-8")
    fsync(path)
    fsync(directory)


def _rename(source: Path, target: Path) -> bool:
    """Rename unless the target is taken. A directory with files in it is never replaced (POSIX)."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def fsync(path: Path) -> None:
    """Have a file's content, or a directory's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Validation and decoding


def _validate(manifest: Manifest) -> None:
    if manifest.format_version > FORMAT_VERSION:
        raise ValueError(f"format_version {manifest.format_version} is newer than {FORMAT_VERSION}")
    if not _NAME.match(manifest.name) or not 1 <= manifest.version <= MAX_INTEGER:
        raise ValueError(f"bad name or version: {manifest.name!r} {manifest.version}")
    for name in manifest.files:
        if not _NAME.match(name):
            raise ValueError(f"files: {name!r} is not a plain file name")
    for variant in manifest.variants:
        if manifest.files.get(variant.file) != variant.sha256:
            raise ValueError(f"variants: {variant.file!r} is not in files with the same sha256")
    if not manifest.inputs or not manifest.outputs or not manifest.variants:
        raise ValueError("inputs, outputs and variants must not be empty")
    _validate_tensors(manifest.inputs, "inputs")
    _validate_tensors(manifest.outputs, "outputs")
    _validate_share(manifest.accuracy, "accuracy")
    for variant in manifest.variants:
        _validate_share(variant.accuracy, "accuracy")
        _validate_share(variant.holdout_accuracy, "holdout_accuracy")
    for quality in (manifest.quality, *(variant.quality for variant in manifest.variants)):
        if quality:
            _validate_quality(quality, manifest.labels)


def _validate_tensors(specs: tuple[TensorSpec, ...], where: str) -> None:
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError(f"{where}: two have the same name")
    for index, spec in enumerate(specs):
        if spec.datatype not in DATATYPES:
            raise ValueError(f"{where}[{index}].datatype is {spec.datatype[:60]!r}, none of ours")
        if len(spec.shape) > MAX_DIMENSIONS or min(spec.shape, default=0) < -1:
            raise ValueError(f"{where}[{index}].shape: up to {MAX_DIMENSIONS} sizes, -1 or more")
        if math.prod(size for size in spec.shape if size >= 0) > MAX_ROW_ELEMENTS:
            raise ValueError(f"{where}[{index}].shape: no message could hold one such row")


def _validate_share(share: float | None, where: str) -> None:
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{where} is {share}, not from 0 to 1")


def _validate_quality(quality: Quality, labels: tuple[str, ...]) -> None:
    if not 0 < quality.temperature < math.inf:
        raise ValueError(f"quality.temperature is {quality.temperature}, not above 0 and finite")
    if not 0 <= quality.expected_calibration_error <= 1:
        error = quality.expected_calibration_error
        raise ValueError(f"quality.expected_calibration_error is {error}, not from 0 to 1")
    if quality.images < 1:
        raise ValueError(f"quality.images is {quality.images}, not at least 1")
    for name in ("ink", "confidence"):
        distribution: Distribution | None = getattr(quality, name)
        if distribution:
            _validate_distribution(distribution, f"quality.{name}")
    if quality.labels:
        _validate_shares(quality.labels, len(labels), "quality.labels")


def _validate_distribution(distribution: Distribution, where: str) -> None:
    bounds = (-math.inf, *distribution.edges, math.inf)
    if not all(low < high for low, high in itertools.pairwise(bounds)):
        raise ValueError(f"{where}.edges must be finite and ascend")
    _validate_shares(distribution.shares, len(distribution.edges) + 1, f"{where}.shares")


def _validate_shares(shares: tuple[float, ...], wanted: int, where: str) -> None:
    if len(shares) != wanted:
        raise ValueError(f"{where} are {len(shares)}, expected {wanted}")
    if not all(share >= 0 for share in shares) or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"{where} must not be negative and must add up to 1")


def _decode(kind: typing.Any, value: object, where: str) -> object:
    """JSON value → the annotated type, ValueError naming the key; unknown keys are ignored."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is types.UnionType:
        return None if value is None else _decode(arguments[0], value, where)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        pairs = _expect(dict, value, where)
        return {
            _text(key, where): _decode(arguments[1], item, f"{where}[{_shown(key)}]")
            for key, item in pairs.items()
        }
    if kind is object:
        return value
    if kind is float:
        return _float(_expect((int, float), value, where), where)
    if kind is str:
        return _text(_expect(str, value, where), where)
    number = _expect(kind, value, where)
    if abs(number) > MAX_INTEGER:
        raise ValueError(f"{where} is {_shown(number)}, beyond 64 bits")
    return number


def _float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} is {_shown(value)}, too large a number") from None


def _text(value: str, where: str) -> str:
    """JSON can hold halves of characters, which no message and no log could."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is {_shown(value)}, not Unicode") from None
    return value


def _shown(value: object) -> str:
    """The beginning of a JSON value, escaped; of what may be deep or long, what it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)[:60]


def _decode_dataclass(kind: typing.Any, value: object, where: str) -> object:
    data = _expect(dict, value, where)
    hints, arguments = typing.get_type_hints(kind), {}
    for item in dataclasses.fields(kind):
        if item.name in data:
            arguments[item.name] = _decode(
                hints[item.name], data[item.name], f"{where}.{item.name}"
            )
        elif item.default is dataclasses.MISSING:
            raise ValueError(f"{where}.{item.name} is missing")
    return kind(**arguments)


def _expect(kind: typing.Any, value: object, where: str) -> typing.Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} is {_shown(value)}, not {_kind_name(kind)}")
    return value


def _kind_name(kind: typing.Any) -> str:
    names = {str: "a string", int: "an integer", dict: "an object", list: "a list"}
    return names.get(kind, "a number") if isinstance(kind, type) else "a number"


# Command line


def main(argv: list[str] | None = None) -> int:
    """``python -m model_repository COMMAND``; returns the exit status."""
    # Not at the top: it imports this module, which as __main__ is there a second time.
    import repository_commands

    return repository_commands.main(argv)


if __name__ == "__main__":
    sys.exit(main())
