"""Manifests through read_manifest, and whole versions through a server that is told to load them.

Judges that a manifest is one or RepositoryError says why, and reads the same once written again;
that a version is served or refused with a reason; and that what was served before goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import numpy as np

from benchmarks.fuzz import damage, messages, models
from benchmarks.fuzz.running import HANG, Target, Wrong
from model_repository import (
    CONFIDENCE_EDGES,
    HOLDOUT,
    INK_EDGES,
    MANIFEST,
    RepositoryError,
    read_manifest,
)
from serving.errors import LoadFailed
from serving.pb import inference_pb2 as pb
from serving.replies import Refusal, Reply
from serving.server import Server

WORDS = (*messages.WORDS, "model.onnx", "holdout.npz", "onnx_onnxv1", "pytorch_torchscript", "fp32",
         "int8", "temperature", "ink", "shares", "edges", "quality", "../model.onnx")  # fmt: skip


def whole_manifest(files: dict[str, str]) -> dict[str, Any]:
    """One of the classifier of digits, with everything that a manifest may have."""
    distribution = {
        "ink": {"edges": INK_EDGES, "shares": [1 / (len(INK_EDGES) + 1)] * (len(INK_EDGES) + 1)},
        "confidence": {"edges": CONFIDENCE_EDGES, "shares": [1.0] + [0.0] * len(CONFIDENCE_EDGES)},
    }
    facts = {"temperature": 1.5, "expected_calibration_error": 0.01, "images": 9}
    quality = {**facts, **distribution, "labels": [0.1] * 10}
    variant = {"file": "model.onnx", "platform": "onnx_onnxv1", "precision": "fp32"}
    counts = ("train_images", "calibration_images", "valid_images")
    parity = {"images": 3, "batch_sizes": [1, 7], "label_disagreements": 0}
    return {
        "name": models.DIGITS,
        "version": 2,
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "labels", "datatype": "INT64", "shape": [-1]},
        ],
        "variants": [{**variant, "sha256": files.get("model.onnx", ""), "accuracy": 0.5}],
        "files": files,
        "format_version": 1,
        "task": "classification",
        "labels": list(models.LABELS),
        "accuracy": 0.5,
        "dataset": {"name": "mnist", "checksum": "a" * 64, **dict.fromkeys(counts, 5)},
        "recipe": {"epochs": 3, "nested": [{"a": None}]},
        "parity": {**parity, "max_probability_difference": 1e-7},
        "quality": quality,
        "source_commit": "abc",
        "created": "2026-01-01T00:00:00+00:00",
    }


def damaged_manifest(draw: Random, whole: dict[str, Any]) -> bytes:
    """With faults in its values, its bytes, or both."""
    value = damage.json_of(draw, whole, WORDS) if draw.random() < 0.85 else whole
    text = json.dumps(value, ensure_ascii=draw.random() < 0.7).encode(errors="surrogatepass")
    kind = draw.random()
    if kind < 0.2:
        return damage.bytes_of(draw, text)
    return b"[" * 100_000 if kind < 0.201 else text


class Manifests:
    """The target: files as publishers, or their disks, might leave them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._whole = whole_manifest({"model.onnx": "0" * 64, HOLDOUT: "1" * 64})

    def case(self, draw: Random) -> bytes:
        """One more manifest.json."""
        return damaged_manifest(draw, self._whole)

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """One after the other."""
        return [self._judge(case) for case in cases]

    def _judge(self, case: bytes) -> str:
        path = self._directory / MANIFEST
        path.write_bytes(case)
        try:
            manifest = read_manifest(self._directory)
        except RepositoryError as error:
            if len(str(error)) > 5000 or not str(error).isprintable():
                raise Wrong(
                    f"an error of {len(str(error))} letters: {error!s:.200}", case
                ) from None
            return "refused"
        path.write_text(json.dumps(dataclasses.asdict(manifest)))
        if repr(read_manifest(self._directory)) != repr(manifest):
            raise Wrong("reads otherwise once written again", case)
        return "read"


@contextmanager
def manifests_opened() -> Iterator[Target]:
    """Needs no server."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        yield Manifests(Path(scratch))


class Versions:
    """The target: version 2 of `digits`, a directory as a zip archive, beside version 1, which is
    asked after each."""

    def __init__(self, running: Server, repository: Path) -> None:
        self._running = running
        self._model = repository / models.DIGITS
        self._files = {
            name: (self._model / "1" / name).read_bytes() for name in ("model.onnx", HOLDOUT)
        }
        self._right = self._answer()

    def case(self, draw: Random) -> bytes:
        """Faults in the model, the holdout or the manifest; mostly the hashes are right again."""
        files = dict(self._files)
        for name in draw.choice((["model.onnx"], [HOLDOUT], [], ["model.onnx", HOLDOUT])):
            files[name] = damage.bytes_of(draw, files[name])
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        whole = whole_manifest(hashes)
        honest = draw.random() < 0.5
        files[MANIFEST] = json.dumps(whole).encode() if honest else damaged_manifest(draw, whole)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for name, data in files.items():
                packed.writestr(zipfile.ZipInfo(name), data)
        return archive.getvalue()

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """One after the other."""
        return [self._judge(case) for case in cases]

    def _judge(self, case: bytes) -> str:
        with zipfile.ZipFile(io.BytesIO(case)) as packed:
            packed.extractall(self._model / "2")
        try:
            self._running.inference.admin.load(models.DIGITS)
            told = "served"
        except LoadFailed as error:
            told = str(error).partition("version 2: ")[2]
            if not told:
                raise Wrong(f"refused without a reason: {error}", case) from None
            told = "refused"
        finally:
            shutil.rmtree(self._model / "2")
        if self._answer() != self._right:
            raise Wrong("version 1 answers otherwise", case)
        return told

    def _answer(self) -> bytes:
        """Version 1's probabilities of two images."""
        request = messages.digits(2)
        request.model_version = "1"
        outcomes: SimpleQueue[Reply | Refusal] = SimpleQueue()
        service = self._running.inference.service
        service.submit(request.SerializeToString(), math.inf, outcomes.put)
        outcome = outcomes.get(timeout=HANG / 2)
        if isinstance(outcome, Refusal):
            raise Wrong(f"version 1 is {outcome.status}: {outcome.details}")
        response = pb.ModelInferResponse.FromString(outcome.message)
        return b"".join(response.raw_output_contents)


@contextmanager
def versions_opened() -> Iterator[Target]:
    """A server that loads on request, all versions of a model."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        repository = Path(scratch, "models")
        images = np.random.default_rng(0).integers(0, 256, (16, 28, 28)).astype(np.uint8)
        models.publish_digits(repository, {"images": images})
        options = {"model_control_mode": "explicit", "load_model": ("*",), "version_policy": "all"}
        with models.serving(repository, **options) as running:
            yield Versions(running, repository)
