"""``make demo``: train what is missing, serve it, classify real images through it, show a table.

Talks to the server only as its clients do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from deploy.service import (
    bypass_proxy,
    grpc_address,
    http_address,
    latest,
    metrics_address,
    server,
    wait_until_interrupted,
)
from deploy.train import STANDARD, TEN_DIGITS
from model_repository import HOLDOUT, Manifest, read_manifest
from serving.client import Client, RequestFailed

TIMED_REQUESTS = 100
SAMPLING_ERROR = 0.1  # how far the share right on 71 to 200 images may lie below the accuracy
TABLE_WIDTH = 120  # characters; a narrower terminal wraps the lines, which beats cutting cells


@dataclass(frozen=True, slots=True)
class Served:
    """What came back over gRPC for one model's holdout images."""

    right: int
    images: int
    median_ms: float  # one image per request


def main() -> int:
    """0 when every model was trained, served and answered as its manifest says."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the table")
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    arguments = parser.parse_args()
    bypass_proxy()
    console = Console(width=max(TABLE_WIDTH, Console().width))
    try:
        _train(arguments.model_repository)
        with server(arguments.model_repository) as process:
            _show(arguments.model_repository, grpc_address(), console)
            if not arguments.once:
                wait_until_interrupted(process)
                console.print("stopping")
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, RequestFailed) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 1
    return 0


def _train(repository: Path) -> None:
    command = [sys.executable, "-m", "deploy.train", "--model-repository", str(repository)]
    subprocess.run(command, check=True)


def _show(repository: Path, address: str, console: Console) -> None:
    table = Table(title="What was trained, exported and served", box=box.SIMPLE)
    for head in ("model", "classes", "data"):
        table.add_column(head, no_wrap=True)
    for head in ("accuracy", "int8", "parity", "model.pt", "model.onnx", "served", "latency"):
        table.add_column(head, justify="right", no_wrap=True)
    with Client(address) as client:
        for name in (*STANDARD, *(f"{model}_0_9" for model in TEN_DIGITS)):
            directory = latest(repository, name)
            manifest = read_manifest(directory)
            table.add_row(*_row(directory, manifest, _ask(client, directory, manifest)))
    console.print(table)
    console.print(
        "accuracy: validation images, PyTorch and ONNX alike; int8: the quantised file's;\n"
        "parity: largest probability difference of TorchScript and ONNX Runtime from PyTorch;\n"
        "served: right answers over gRPC on labelled validation images;\n"
        "latency: median of one image per request, over gRPC."
    )
    _print_addresses(address, console)


def _print_addresses(address: str, console: Console) -> None:
    metrics = f"http://{metrics_address()}/metrics"
    console.print(
        f"\npage     http://{http_address()}  (draw a digit)"
        f"\ngRPC     {address}\nmetrics  {metrics}",
        highlight=False,
    )
    console.print(
        f"""\nCall it from Python:

  from serving.client import Client
  images = ...  # uint8, (N, 28, 28): 0 black, 255 white ink
  print(Client("{address}").classify(images, model="resnet18_0_9").labels)

or with image files:

  {os.path.relpath(sys.executable)} -m serving.client classify FILE.png --model resnet18_0_9
""",
        highlight=False,
        markup=False,
    )


def _ask(client: Client, directory: Path, manifest: Manifest) -> Served:
    """Send the version's labelled holdout images through the server."""
    with np.load(directory / HOLDOUT, allow_pickle=False) as holdout:
        images, labels = holdout["images"], holdout["labels"]
    answer = client.classify(images, manifest.name, version=str(manifest.version))
    assert manifest.accuracy is not None
    right = sum(manifest.labels[i] == a for i, a in zip(labels, answer.labels, strict=True))
    if right / len(labels) < manifest.accuracy - SAMPLING_ERROR:
        raise RuntimeError(f"{manifest.name}: only {right} of {len(labels)} answers were right")
    times = []
    for number in range(TIMED_REQUESTS):
        start = time.perf_counter()
        client.classify(images[number % len(images)], manifest.name)
        times.append(time.perf_counter() - start)
    return Served(right, len(images), statistics.median(times) * 1000)


def _row(directory: Path, manifest: Manifest, served: Served) -> list[str]:
    int8 = [v.accuracy for v in manifest.variants if v.precision == "int8"]
    labels = manifest.labels
    return [
        manifest.name,
        ",".join(labels) if len(labels) < 4 else f"{labels[0]} to {labels[-1]}",
        manifest.dataset.name if manifest.dataset else "-",
        f"{manifest.accuracy:.4f}",
        f"{int8[0]:.4f}" if int8 else "-",
        f"{manifest.parity.max_probability_difference:.0e}" if manifest.parity else "-",
        _size(directory / "model.pt"),
        _size(directory / "model.onnx"),
        f"{served.right}/{served.images}",
        f"{served.median_ms:.2f} ms",
    ]


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


if __name__ == "__main__":
    sys.exit(main())
