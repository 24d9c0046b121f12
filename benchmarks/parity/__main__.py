"""Whether all runtimes give the same answers: ``python -m benchmarks.parity``, or ``make parity``.

Eager PyTorch, TorchScript, ONNX Runtime, our server and TorchServe answer the same validation
images, each at every precision that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.parity.measure import Row, measure
from benchmarks.parity.page import html, markdown
from benchmarks.parity.runtimes import Version, in_process, newest
from benchmarks.parity.servers import start
from benchmarks.serving.environments import versions as versions_of
from benchmarks.serving.process import DidNotStart
from model_repository import RepositoryError
from serving.client import RequestFailed
from serving.errors import ModelLoadError
from training.data import SOURCES, load_dataset
from training.dataset import DataError, Dataset
from training.recipes import STANDARD_MODELS

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "onnxruntime", "numpy", "grpcio")


def main(argv: Sequence[str] | None = None) -> int:
    """0: all agree; 1: one does not, and the table says which; 2: it could not be tried."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]  # before this adds to it
    try:
        models = [newest(arguments.model_repository, name) for name in arguments.models.split(",")]
        _require_same_classes(models)
        dataset = load_dataset(arguments.dataset, models[0].manifest.labels, arguments.data_dir)
        rows = list(_rows(models, dataset, arguments))
    except (RepositoryError, DataError, ModelLoadError, DidNotStart, RequestFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _write(rows, dataset, load, arguments)
    return int(any(row.faults for row in rows))


def _require_same_classes(models: Sequence[Version]) -> None:
    for version in models:
        if version.manifest.labels != models[0].manifest.labels:
            raise RepositoryError(f"{version.directory}: other classes than {models[0].name} has")


def _rows(
    models: Sequence[Version], dataset: Dataset, arguments: argparse.Namespace
) -> Iterator[Row]:
    local = [list(in_process(version)) for version in models]
    with ExitStack() as stack:
        servers = start(stack, arguments.model_repository, models, arguments.torchserve)
        for version, contestants in zip(models, local, strict=True):
            print(f"{version.name} ...", file=sys.stderr, flush=True)
            precisions = {variant.precision for variant in version.onnx()}
            served = [each.contestant(version) for each in servers if each.precision in precisions]
            facts = version.manifest.dataset
            same = facts is not None and facts.checksum == dataset.checksum
            everyone = [*contestants, *served]
            yield from measure(version, everyone, dataset.valid, same, arguments.requests)


def _write(
    rows: Sequence[Row], dataset: Dataset, load: float, arguments: argparse.Namespace
) -> None:
    machine = {**describe(PACKAGES), "load_average": round(load, 1)}
    if (arguments.torchserve / "bin" / "python").exists():
        found = versions_of(arguments.torchserve.parent, arguments.torchserve.name)
        versions = machine["versions"]
        assert isinstance(versions, dict)
        versions["torchserve"] = found["torchserve"]
    images = {
        "dataset": dataset.name,
        "checksum": dataset.checksum,
        "classes": dataset.labels,
        "count": len(dataset.valid.labels),
    }
    record = {
        "machine": machine,
        "images": images,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "parity.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.output / "parity.md").write_text(markdown(rows, dataset, machine))
    (arguments.output / "parity.html").write_text(html(rows, dataset, machine))
    print(markdown(rows, dataset, machine))
    print(f"written to {arguments.output}/parity.html")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--models", default=",".join(STANDARD_MODELS), help="of the same classes")
    parser.add_argument("--dataset", choices=SOURCES, default="auto", help="as training has it")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MNIST_DIR"))
    text = "directory of its environment; where there is none, it is left out"
    parser.add_argument("--torchserve", type=Path, default=Path(".venv-torchserve"), help=text)
    text = "single images that each runtime is timed with [%(default)s]"
    parser.add_argument("--requests", type=int, default=100, help=text)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
