"""``make observe``: a service, a real Prometheus and a load of labelled digits; do they agree?

Prints what Prometheus sees beside what the clients counted, and then what it sees when the digits
are inverted. Ends with 1 where a count differs. Ports come from the environment.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from deploy import load
from deploy.agreement import Row, compare, qualities
from deploy.prometheus_server import (
    Prometheus,
    PrometheusError,
    executable,
    free_port,
    is_free,
    prometheus,
)
from deploy.service import (
    bypass_proxy,
    grpc_address,
    latest,
    metrics_address,
    server,
    train,
    wait_until_interrupted,
)
from model_repository import HOLDOUT, Manifest, read_manifest, versions
from serving.client import Client, RequestFailed
from training.data import load_dataset
from training.dataset import DataError, Split

MODEL, CLASSES = "mlp_deep", "3,7"
CLIENTS = 2
WORKERS = 2  # what they count is one sum
DRIFT_WINDOW = 10.0  # seconds: a newcomer does not wait for ten minutes
DRIFT_TIMEOUT = 60.0
DRIFT_ALERT = "InferenceInputDrift"
PROMETHEUS_PORT = 9090


def main() -> int:
    """0 when Prometheus and the clients agree, and inverted digits raise the drift alert."""
    parser = argparse.ArgumentParser(prog="python -m deploy.observe", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the tables")
    parser.add_argument("--seconds", type=_seconds, default=15.0, help="of load [%(default)g]")
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    arguments = parser.parse_args()
    bypass_proxy()
    signal.signal(signal.SIGTERM, _interrupt)  # so that what was started is stopped
    console = Console(width=max(100, Console().width))
    try:
        return _observe(arguments, console)
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, RequestFailed, PrometheusError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 1


def _seconds(text: str) -> float:
    """Of load: without any there is nothing to compare."""
    if not 1.0 <= (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("at least 1")
    return seconds


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _observe(arguments: argparse.Namespace, console: Console) -> int:
    repository: Path = arguments.model_repository
    executable(), _prometheus_port()  # what is missing is told before minutes of training
    directory, manifest = _trained(repository)
    images, labels = _labelled(directory, manifest)
    # Nobody asks over HTTP here, and its port may be taken.
    flags = [f"--workers={WORKERS}", f"--drift-window={DRIFT_WINDOW:g}", "--allow-http=false"]
    with (
        prometheus([metrics_address()], port=_prometheus_port()) as server_of_metrics,
        server(repository, *flags) as process,
    ):
        server_of_metrics.wait_for_scrape()  # of zeros: what is counted now is an increase
        console.print(f"asking {MODEL} for {arguments.seconds:g} s, one label in 10 sent wrong ...")
        source = _for_seconds(arguments.seconds, images, labels)
        tally = load.run(grpc_address(), MODEL, source, CLIENTS)
        if tally.lost:
            raise RuntimeError(f"{tally.lost} requests were not answered")
        server_of_metrics.wait_for_scrape()
        rows = compare(server_of_metrics, tally)
        _show(rows, console)
        _show_quality(server_of_metrics, tally, console)
        drifted = _invert(server_of_metrics, images, console)
        _print_addresses(server_of_metrics, console)
        if not arguments.once:
            wait_until_interrupted(process)
            console.print("stopping")
    agreed = all(row.agrees is not False for row in rows)
    return 0 if agreed and drifted else 1


def _trained(repository: Path) -> tuple[Path, Manifest]:
    """The newest version, if it says what it expects of its inputs, as those of earlier releases
    do not; else one that is trained now."""
    if versions(repository / MODEL):
        directory = latest(repository, MODEL)
        if (manifest := read_manifest(directory)).quality:
            return directory, manifest
    train(repository, (MODEL,), CLASSES)
    directory = latest(repository, MODEL)
    return directory, read_manifest(directory)


def _labelled(directory: Path, manifest: Manifest) -> tuple[NDArray[np.uint8], list[str]]:
    """Images that the model was not trained on, shuffled, and what they show: the validation
    images, or the version's own holdout where those cannot be had any more."""
    assert manifest.dataset is not None
    mnist = os.environ.get("MNIST_DIR")
    try:
        name, classes = manifest.dataset.name, manifest.labels
        valid = load_dataset(name, classes, Path(mnist) if mnist else None).valid
    except DataError:
        with np.load(directory / HOLDOUT, allow_pickle=False) as holdout:
            valid = Split(holdout["images"], holdout["labels"])
    shuffled = valid.at(np.random.default_rng(0).permutation(len(valid.labels)))
    return shuffled.images, [manifest.labels[index] for index in shuffled.labels]


def _prometheus_port() -> int:
    """As asked for; else the usual one, unless somebody has it, such as Debian's own service."""
    if text := os.environ.get("PROMETHEUS_PORT"):
        if not text.isdecimal():
            raise PrometheusError(f"PROMETHEUS_PORT is no port: {text}")
        return free_port(int(text))
    return PROMETHEUS_PORT if is_free(PROMETHEUS_PORT) else 0


def _for_seconds(
    seconds: float, images: NDArray[np.uint8], labels: list[str]
) -> Iterator[load.Batch]:
    said = load.mislabelled(labels, tuple(sorted(set(labels))))
    end = time.monotonic() + seconds
    again = itertools.chain.from_iterable(load.batches(images, said) for _ in itertools.count())
    return itertools.takewhile(lambda batch: time.monotonic() < end, again)


def _show(rows: list[Row], console: Console) -> None:
    table = Table(title="What the clients counted, and what Prometheus sees", box=box.SIMPLE)
    table.add_column("")
    for head in ("clients", "Prometheus", "agree"):
        table.add_column(head, justify="right")
    for row in rows:
        verdict = {True: "yes", False: "NO", None: ""}[row.agrees]
        table.add_row(row.what, row.counted, row.seen, verdict)
    console.print(table)


def _show_quality(metrics: Prometheus, tally: load.Tally, console: Console) -> None:
    with Client(grpc_address()) as client:
        told = client.quality(tally.model, tally.version)
    table = Table(title="What is known of the answers", box=box.SIMPLE)
    table.add_column("")
    table.add_column("value", justify="right")
    for what, value in qualities(metrics, tally, told):
        table.add_row(what, value)
    console.print(table)


def _invert(metrics: Prometheus, images: NDArray[np.uint8], console: Console) -> bool:
    """Send inverted digits until the alert on their ink tells; whether that was what raised it."""
    console.print("now the same digits inverted, black on white ...")
    before = metrics.alerts(DRIFT_ALERT, model=MODEL, feature="ink")
    states = _drifted(metrics, images)
    seen = metrics.query(f'inference_drift_psi{{model="{MODEL}"}}')
    indices = ", ".join(f"{each.labels['feature']} {each.value:.2f}" for each in seen)
    console.print(f"{DRIFT_ALERT} was {_text(before)}, is {_text(states)}; drift: {indices}")
    return bool(states) and not before


def _drifted(metrics: Prometheus, images: NDArray[np.uint8]) -> set[str]:
    """What the alert is, once it is anything; empty where it says nothing in time."""
    end = time.monotonic() + DRIFT_TIMEOUT
    starts = itertools.cycle(range(0, len(images), load.ROWS))
    with Client(grpc_address()) as client:
        while time.monotonic() < end:
            start = next(starts)
            client.classify(255 - images[start : start + load.ROWS], MODEL)
            if states := metrics.alerts(DRIFT_ALERT, model=MODEL, feature="ink"):
                return states
    return set()


def _text(states: set[str]) -> str:
    return " and ".join(sorted(states)) or "inactive"


def _print_addresses(metrics: Prometheus, console: Console) -> None:
    console.print(
        f"""
gRPC        {grpc_address()}
metrics     http://{metrics_address()}/metrics
Prometheus  {metrics.url}/graph?g0.expr=model_version:inference_accuracy:ratio_increase5m
alerts      {metrics.url}/alerts
dashboards  deploy/grafana: README says how to start Grafana with them
""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
