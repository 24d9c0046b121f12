"""Any ONNX model becomes a published version: its file, labels and holdout, checked together.

What a model's file must be is `training.onnx_file`'s business, the holdout's is
`training.holdout`'s. Returns values and raises; prints nothing. The manifest has no `quality`: a
temperature fitted on the holdout could not be judged by it, and there are no other images.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import onnx

from model_repository import (
    HOLDOUT,
    ONNX_PLATFORM,
    Draft,
    Manifest,
    Variant,
    publish,
    read_manifest,
    staging,
)
from training.dataset import DataError
from training.holdout import measure
from training.import_config import ImportConfig
from training.onnx_file import OnnxError, Runnable, load, read_model


def import_model(config: ImportConfig) -> tuple[Path, Manifest]:
    """Publish the model; its version directory and manifest.

    Raises OnnxError for the model, DataError for labels or holdout, and then publishes nothing.
    """
    labels = read_labels(config.labels) if config.labels else ()
    try:
        model = read_model(config.file)
        with staging(config.model_repository) as directory:
            onnx.save_model(model, directory / "model.onnx")
            runnable = load(directory / "model.onnx")  # what is proven is what is published
            _require_width(config.labels, labels, runnable.widths)
            accuracy = _prove(config.holdout, directory, runnable, len(labels))
            facts = _facts(config, model, labels, accuracy)
            path = publish(directory, _draft(config.name, runnable, accuracy, facts))
    except OnnxError as error:
        raise OnnxError(f"{config.file}: {error}") from None
    return path, read_manifest(path)


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names of a file, one a line; DataError for what is empty, repeated or not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error}") from None
    names = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name or name in seen:
            fault = f"repeats {name!r}" if name else "is empty"
            raise DataError(f"{path}: line {number} {fault}")
        seen.add(name)
    return names


def _require_width(path: Path | None, labels: tuple[str, ...], widths: dict[str, int]) -> None:
    if labels and len(labels) not in widths.values():
        found = ", ".join(f"{name} {width}" for name, width in widths.items()) or "there is none"
        raise DataError(f"{path}: {len(labels)} labels fit no output's last dimension ({found})")


def _prove(path: Path | None, directory: Path, runnable: Runnable, classes: int) -> float | None:
    """Copy the holdout into the version and run it; the accuracy, where it has true classes."""
    if path is None:
        return None
    try:
        shutil.copyfile(path, directory / HOLDOUT)
        return measure(directory / HOLDOUT, runnable, classes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _draft(
    name: str, runnable: Runnable, accuracy: float | None, facts: dict[str, object]
) -> Draft:
    # Whatever precision is inside, it is this model's only one, which servers call fp32.
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy, accuracy)
    return Draft(name, runnable.inputs, runnable.outputs, (variant,), facts)


def _facts(
    config: ImportConfig, model: onnx.ModelProto, labels: tuple[str, ...], accuracy: float | None
) -> dict[str, object]:
    origin = {
        "name": "import",
        "file": config.file.name,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opsets": {item.domain or "ai.onnx": item.version for item in model.opset_import},
    }
    classifies = labels or accuracy is not None
    return {
        "task": "classification" if classifies else "inference",
        "labels": labels,
        "accuracy": accuracy,
        "recipe": origin,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
