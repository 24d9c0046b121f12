"""What a server knows of its accuracy without labels: ``python -m benchmarks.quality``.

Sends MNIST's validation images, clean and perturbed, to every model of a repository through a real
server, and puts what GetQuality estimates beside the truth. A server is started anew for each
perturbation, so that its window holds nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.perturbed import Perturbation
from benchmarks.quality_table import Result, checks, said, table
from model_repository import ONNX_PLATFORM, Manifest, model_names, read_manifest, versions
from serving.client import Classification, Client, ModelQuality
from serving.config import ServerConfig
from serving.server import Server
from training.calibration import calibrated, expected_calibration_error, reliability
from training.data import load_dataset
from training.dataset import Split

RESULTS = Path(__file__).parent / "results"
PERTURBATIONS = (
    Perturbation("clean"),
    *(Perturbation("blur", sigma) for sigma in (0.5, 1.0, 1.5, 2.0)),
    *(Perturbation("noise", deviation) for deviation in (0.05, 0.1, 0.2, 0.3)),
    *(Perturbation("rotation", degrees) for degrees in (15.0, 30.0, 45.0, 90.0, 180.0)),
    Perturbation("inversion"),
)
PRECISIONS = ("fp32", "int8")
PATIENCE = 60.0  # seconds in which the server must have looked at what it was sent


def measure(
    manifests: Sequence[Manifest],
    valid: dict[tuple[str, ...], Split],
    config: ServerConfig,
    perturbation: Perturbation,
) -> list[Result]:
    """What a server of these models says, `valid` being the images for each model's labels."""
    seen = {labels: perturbation.of(split.images) for labels, split in valid.items()}
    with _client(config) as client:
        answers = [client.classify(seen[m.labels], m.name, timeout=600) for m in manifests]
        known = [_quality(client, each.model, len(each.labels)) for each in answers]
    return [
        _result(manifest, config.precision, perturbation, valid[manifest.labels], answer, quality)
        for manifest, answer, quality in zip(manifests, answers, known, strict=True)
    ]


@contextmanager
def _client(config: ServerConfig) -> Iterator[Client]:
    server = Server(config)
    server.start()
    try:
        server.wait_until_loaded()
        with Client(f"localhost:{server.grpc_port}") as client:
            yield client
    finally:
        server.stop()


def _result(
    manifest: Manifest,
    precision: str,
    perturbation: Perturbation,
    valid: Split,
    answer: Classification,
    known: ModelQuality,
) -> Result:
    variant = manifest.variant(ONNX_PLATFORM, precision)
    assert variant
    quality = manifest.quality_of(variant)
    assert quality
    assert known.drift
    assert known.estimated_accuracy is not None
    shares = calibrated(answer.probabilities, quality.temperature)
    return Result(
        manifest.name,
        precision,
        perturbation,
        known.drift.rows,
        _accuracy(answer, valid),
        known.estimated_accuracy,
        known.estimate_reliable,
        expected_calibration_error(reliability(shares, valid.labels)),
        dict(known.drift.population_stability_index),
    )


def _accuracy(answer: Classification, valid: Split) -> float:
    truth = np.array(answer.classes)[valid.labels]
    return float((np.array(answer.labels) == truth).mean())


def _quality(client: Client, model: str, rows: int) -> ModelQuality:
    """What the server says once it has looked at all the rows, which it does every few seconds."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        (known,) = client.quality(model)
        if known.drift and known.drift.rows == rows:
            return known
        time.sleep(0.2)
    raise RuntimeError(f"{model}: the server has not looked at its {rows} rows in {PATIENCE} s")


def main() -> int:
    """Measure, print, write; 0 when all that is asked for is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MNIST_DIR"))
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config = ServerConfig(
        model_repository=arguments.model_repository,
        grpc_port=0,
        metrics_port=0,
        allow_http=False,
        probe_interval=0,
    )
    manifests = with_quality(arguments.model_repository)
    tasks = {each.labels for each in manifests}
    valid = {task: load_dataset("mnist", task, arguments.data_dir).valid for task in tasks}
    results: list[Result] = []
    for precision, perturbation in itertools.product(PRECISIONS, PERTURBATIONS):
        served = dataclasses.replace(config, precision=precision)
        having = [each for each in manifests if each.variant(ONNX_PLATFORM, precision)]
        results += measure(having, valid, served, perturbation)
        print(*map(said, results[-len(having) :]), sep="\n", flush=True)
    machine = describe(("numpy", "onnxruntime"))
    text = table(results, config.drift_threshold, machine)
    record = {"machine": machine, "results": [dataclasses.asdict(each) for each in results]}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.output / "quality.md").write_text(text)
    print(text)
    return int(any(check.missed for check in checks(results, config.drift_threshold)))


def with_quality(repository: Path) -> list[Manifest]:
    """The latest versions that were made from MNIST and say how to calibrate them."""
    latest = [versions(repository / name)[-1] for name in model_names(repository)]
    found = [
        read_manifest(repository / name / str(version))
        for name, version in zip(model_names(repository), latest, strict=True)
    ]
    return [
        each for each in found if each.quality and each.dataset and each.dataset.name == "mnist"
    ]


if __name__ == "__main__":
    sys.exit(main())
