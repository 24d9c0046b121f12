"""A trained classifier becomes TorchScript and ONNX files that are proven to answer as it does.

Owns both exports, the parity gate over the validation images, and the holdout for later probes.
Quantisation is in `training.quantise`; what is written where is `model_repository`'s business.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from model_repository import Parity, TensorSpec
from training.dataset import Split
from training.models import Classifier

OPSET = 23  # the newest that the ONNX Runtime releases of the last year run
TOLERANCE = 1e-5  # largest difference of a probability between two runtimes
BATCH_SIZES = (64, 7, 2, 1)
HOLDOUT_IMAGES = 200

INPUTS = (TensorSpec("images", "UINT8", (-1, 28, 28)),)

Answers = tuple[NDArray[np.float32], NDArray[np.int64]]  # probabilities (N, C), labels (N,)
Runner = Callable[[NDArray[np.uint8]], Answers]


class GateFailed(Exception):
    """An exported model is not good enough to publish; the message says what differed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One runtime at one batch size against eager PyTorch."""

    runtime: str
    batch_size: int
    images: int
    label_disagreements: int
    max_probability_difference: float


def outputs(classes: int) -> tuple[TensorSpec, ...]:
    """The output signature of every classifier that this project publishes."""
    return (
        TensorSpec("probabilities", "FP32", (-1, classes)),
        TensorSpec("labels", "INT64", (-1,)),
    )


def eager_runner(classifier: Classifier) -> Runner:
    """Answers of the PyTorch module itself; it is put into evaluation mode."""
    return torch_runner(classifier.eval())


def torch_runner(module: torch.nn.Module) -> Runner:
    """Answers of a module that is in evaluation mode, eager or TorchScript."""

    def run(images: NDArray[np.uint8]) -> Answers:
        with torch.inference_mode():
            probabilities, labels = module(torch.from_numpy(images))
        return probabilities.numpy(), labels.numpy()

    return run


def export_torchscript(classifier: Classifier, path: Path) -> Runner:
    """Write TorchScript and return answers from the file as it is read back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.jit.script(classifier.eval()).save(str(path))
        return torch_runner(torch.jit.load(str(path)))


def export_onnx(classifier: Classifier, labels: tuple[str, ...], name: str, path: Path) -> Runner:
    """Write one self-contained ONNX file with a dynamic batch; return ONNX Runtime's answers.

    The graph carries the class labels and the model's name as metadata. Raises
    onnx.checker.ValidationError where the graph is not valid ONNX.
    """
    example = torch.zeros(2, 28, 28, dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            classifier.eval(),
            (example,),
            dynamo=True,
            input_names=[spec.name for spec in INPUTS],
            output_names=[spec.name for spec in outputs(len(labels))],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.graph.name = name
    onnx.helper.set_model_props(model, {"name": name, "labels": json.dumps(labels)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)
    return onnx_runner(path)


def onnx_runner(path: Path) -> Runner:
    """Answers of ONNX Runtime on the CPU, on as many threads as PyTorch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> Answers:
        probabilities, labels = session.run(["probabilities", "labels"], {"images": images})
        return probabilities, labels

    return run


def answer(run: Runner, images: NDArray[np.uint8], batch_size: int) -> Answers:
    """Answers on all the images, `batch_size` rows at a time."""
    parts = [run(images[at : at + batch_size]) for at in range(0, len(images), batch_size)]
    return np.concatenate([p for p, _ in parts]), np.concatenate([label for _, label in parts])


def compare(eager: Answers, runners: dict[str, Runner], valid: Split) -> list[Comparison]:
    """Every runtime at every batch size against eager's answers.

    All images at the first batch size, and for ONNX at every size; TorchScript, which is slow on
    small batches, answers HOLDOUT_IMAGES of them at the others.
    """
    comparisons = []
    for runtime, run in runners.items():
        for batch_size in BATCH_SIZES:
            whole = batch_size == BATCH_SIZES[0] or runtime.startswith("ONNX")
            count = len(valid.images) if whole else HOLDOUT_IMAGES
            comparisons.append(_compare(eager, runtime, run, valid.images[:count], batch_size))
    return comparisons


def parity(comparisons: list[Comparison]) -> Parity:
    """The summary for the manifest; GateFailed names each comparison that is out of tolerance."""
    failed = [
        f"{c.runtime} at batch size {c.batch_size}: {c.label_disagreements} of {c.images} labels"
        f" differ, probabilities by up to {c.max_probability_difference:.2g}"
        for c in comparisons
        if c.label_disagreements or not c.max_probability_difference <= TOLERANCE
    ]
    if failed:
        raise GateFailed(
            f"disagrees with eager PyTorch (tolerance {TOLERANCE}): {'; '.join(failed)}"
        )
    return Parity(
        images=max(c.images for c in comparisons),
        batch_sizes=tuple(sorted(BATCH_SIZES)),
        label_disagreements=sum(c.label_disagreements for c in comparisons),
        max_probability_difference=max(c.max_probability_difference for c in comparisons),
    )


def accuracy(answers: Answers, split: Split) -> float:
    """The share of right labels."""
    return float((answers[1] == split.labels).mean())


def write_holdout(valid: Split, path: Path) -> None:
    """Up to HOLDOUT_IMAGES labelled validation images, spread evenly over the whole set."""
    rows = np.unique(np.linspace(0, len(valid.labels) - 1, HOLDOUT_IMAGES).astype(np.int64))
    np.savez_compressed(path, images=valid.images[rows], labels=valid.labels[rows])


def _compare(
    eager: Answers, runtime: str, run: Runner, images: NDArray[np.uint8], batch_size: int
) -> Comparison:
    probabilities, labels = answer(run, images, batch_size)
    return Comparison(
        runtime,
        batch_size,
        len(images),
        int((labels != eager[1][: len(images)]).sum()),
        float(np.abs(probabilities - eager[0][: len(images)]).max()),
    )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of its own internals and of torchvision's absence; neither concerns us."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
