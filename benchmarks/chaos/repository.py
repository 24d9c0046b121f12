"""A repository whose disk can be filled, and a model whose answers tell which version gave them."""

from __future__ import annotations

import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_repository import ONNX_PLATFORM, Draft, TensorSpec, Variant, publish, staging, versions

MODEL = "times"
WIDTH = 512  # of the matrix that a row is multiplied by: what makes a request cost something
DISK = 48 << 20  # bytes


class Repository:
    """Versions of `times`, which gives its input times its version's number."""

    def __init__(self, disk: Path, *, bounded: bool) -> None:
        self._disk = disk
        self.bounded = bounded  # the disk is of DISK bytes, and can be filled
        self.path = disk / "models"
        self.path.mkdir()

    def publish(self) -> int:
        """The next version; OSError where the disk is full."""
        number = max(self.numbers, default=0) + 1
        with staging(self.path) as directory:
            _save(directory / "model.onnx", number)
            variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy=None)
            x, y = (TensorSpec(name, "FP32", (-1, WIDTH)) for name in ("x", "y"))
            published = publish(directory, Draft(MODEL, (x,), (y,), (variant,), {}))
        return int(published.name)

    def publish_broken(self) -> int:
        """A version whose file is what its manifest says, but no model."""
        number = max(self.numbers) + 1
        with staging(self.path) as directory:
            (directory / "model.onnx").write_bytes(b"no model" * 100)
            variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy=None)
            x, y = (TensorSpec(name, "FP32", (-1, WIDTH)) for name in ("x", "y"))
            publish(directory, Draft(MODEL, (x,), (y,), (variant,), {}))
        return number

    def delete(self, number: int) -> None:
        """As an operator would, while it may be served."""
        shutil.rmtree(self.path / MODEL / str(number))

    @property
    def numbers(self) -> list[int]:
        """Versions that are published."""
        with suppress(FileNotFoundError):
            return versions(self.path / MODEL)
        return []

    @contextmanager
    def away(self) -> Iterator[None]:
        """For as long as its file system is not there."""
        elsewhere = self.path.with_name("elsewhere")
        self.path.rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(self.path)

    @contextmanager
    def full(self) -> Iterator[None]:
        """For as long as its disk has no room."""
        ballast = self._disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(64 << 10))
            yield
        finally:
            ballast.unlink()

    def publish_without_room(self) -> bool:
        """Whether publishing failed for want of room, and left nothing behind."""
        before = sorted(self.path.rglob("*"))
        try:
            self.publish()
        except OSError as error:
            return error.errno == errno.ENOSPC and sorted(self.path.rglob("*")) == before
        return False


@contextmanager
def repository() -> Iterator[Repository]:
    """On a small disk of its own, where this user may mount one."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        size = f"size={DISK}"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", scratch]
        mounted = not subprocess.run(mount, capture_output=True).returncode
        try:
            yield Repository(Path(scratch), bounded=mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", scratch], check=True)  # nosec B607 # root's PATH


def _save(path: Path, factor: int) -> None:
    """y = x times a diagonal matrix, twice: exact, as all other products are with zeros."""
    nodes = [
        helper.make_node("MatMul", ["x", "factor"], ["product"]),
        helper.make_node("MatMul", ["product", "one"], ["y"]),
    ]
    shape: list[str | int] = ["N", WIDTH]
    diagonal = np.eye(WIDTH, dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(diagonal * np.float32(factor), "factor"),
            numpy_helper.from_array(diagonal, "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
