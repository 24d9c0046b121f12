"""Publishes two versions of a model that a server must refuse: 2, a byte of whose model file has
changed since it was hashed, and 3, which does not reach on its holdout what its manifest says.

Runs in a pod, with what the client's image has: `python -c SOURCE /models/MODEL/1`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model_repository import HOLDOUT, MANIFEST, sha256, staging


def publish_spoiled(source: Path, version: int, spoil: Callable[[Path], None]) -> None:
    """A copy of a version, spoilt before it takes its place."""
    with staging(source.parent.parent) as directory:
        shutil.copytree(source, directory, dirs_exist_ok=True)
        manifest = json.loads((directory / MANIFEST).read_text())
        manifest["version"] = version
        (directory / MANIFEST).write_text(json.dumps(manifest))
        spoil(directory)
        directory.chmod(0o755)
        directory.rename(source.parent / str(version))


def damage(directory: Path) -> None:
    """One byte in the middle of the model is another."""
    path = directory / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def break_promise(directory: Path) -> None:
    """The images are said to show the next class: all is whole, and no answer is right."""
    with np.load(directory / HOLDOUT) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    np.savez(directory / HOLDOUT, images=images, labels=(labels + 1) % (labels.max() + 1))
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][HOLDOUT] = sha256(directory / HOLDOUT)
    (directory / MANIFEST).write_text(json.dumps(manifest))


if __name__ == "__main__":
    first = Path(sys.argv[1])
    publish_spoiled(first, 2, damage)
    publish_spoiled(first, 3, break_promise)
