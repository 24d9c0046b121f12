"""ONNX Runtime sessions of files that the manifest vouches for.

What was hashed is what is loaded: the file is copied into memory of our own while it is hashed. A
file that points to others, as ONNX's external data does, is refused: no hash covers those.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_repository import Manifest, TensorSpec, Variant
from serving.device import Runtime, provider_options
from serving.errors import ModelLoadError

Tensors = dict[str, NDArray[np.generic]]

CHUNK = 1 << 20  # bytes; other threads run between two of them
MAX_BYTES = 2**31  # of one file: protobuf, and so ONNX, has no larger message
MESSAGE = 2000  # characters of what ONNX Runtime says; whoever wrote the file chose some of them

# ONNX Runtime's type → V2's.
TYPES: dict[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def open_session(
    directory: Path, manifest: Manifest, variant: Variant, runtime: Runtime
) -> onnxruntime.InferenceSession:
    """A session of the variant's file, on the runtime's provider, with the manifest's signature.

    Raises ModelLoadError.
    """
    path = directory / variant.file
    with verified(directory, variant.file, variant.sha256) as copy:
        session = _session(path, f"/proc/self/fd/{copy.fileno()}", variant, runtime)
    active = session.get_providers()[0]
    if active != runtime.provider:
        raise ModelLoadError(
            f"{path}: {runtime.provider} failed to start and {active} took its place; "
            "see ONNX Runtime's message above",
            "session",
        )
    try:
        _check_signature(path, "input", session.get_inputs(), manifest.inputs)
        _check_signature(path, "output", session.get_outputs(), manifest.outputs)
    except UnicodeDecodeError:
        raise ModelLoadError(f"{path}: a tensor's name is not UTF-8", "signature") from None
    return session


@contextmanager
def verified(directory: Path, name: str, sha256: str) -> Iterator[BinaryIO]:
    """A private copy, in memory, of a file whose content has that hash; ModelLoadError otherwise.

    ONNX Runtime loads from a path without Python's lock, and from bytes with it.
    """
    path = directory / name
    if Path(name).name != name:
        raise ModelLoadError(f"{path}: is not a file of this version", "manifest")
    with os.fdopen(os.memfd_create("model"), "w+b") as copy:
        try:
            actual = _copy(path, copy)
        except OSError as error:
            # O_NOFOLLOW makes a symbolic link a loop
            raise ModelLoadError(f"{path}: {error.strerror}", "checksum") from None
        if actual != sha256:
            message = f"{path}: sha256 is {actual}, the manifest says {sha256}"
            raise ModelLoadError(message, "checksum")
        copy.flush()
        copy.seek(0)
        yield copy


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return printable(next(iter(str(error).splitlines()), type(error).__name__))


def printable(text: str) -> str:
    """A text that others wrote, so that no log, terminal or message is upset by it, nor filled."""
    shown = text if len(text) <= MESSAGE else f"{text[:MESSAGE]}..."
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def _copy(path: Path, target: io.BufferedIOBase) -> str:
    """Copy a regular file, no symbolic link; the hex SHA-256 of what was copied."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as source:
        found, left = os.fstat(descriptor), MAX_BYTES
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "not a regular file")
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            if left < 0 or found.st_size > MAX_BYTES:
                raise OSError(None, f"larger than {MAX_BYTES} bytes")
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _session(
    path: Path, copy: str, variant: Variant, runtime: Runtime
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions: printed, they would be told twice
    # A spinning thread burns the CPU that gRPC needs between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = provider_options(runtime, variant.precision, variant.sha256)
    try:
        # Its own fallback would print, and go on with the CPU in the GPU's place.
        return onnxruntime.InferenceSession(copy, options, providers=providers, enable_fallback=0)
    except Exception as error:
        message = first_line(error)
        if "xternal data" in message or copy in message:
            message = f"it keeps weights in other files, a model must be one file ({message})"
        raise ModelLoadError(f"{path}: ONNX Runtime refuses it: {message}", "session") from None


def _check_signature(
    path: Path, kind: str, tensors: list[onnxruntime.NodeArg], specs: tuple[TensorSpec, ...]
) -> None:
    actual = {t.name: (TYPES.get(t.type, t.type), _shape(t)) for t in tensors}
    expected = {spec.name: (spec.datatype, spec.shape) for spec in specs}
    if actual != expected:
        message = f"{path}: {kind}s are {actual}, the manifest says {expected}"
        raise ModelLoadError(message, "signature")


def _shape(tensor: onnxruntime.NodeArg) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
