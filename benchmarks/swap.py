"""What clients feel while ResNet18 is swapped under load: ``python -m benchmarks.swap VERSION``.

A server polls a scratch repository; clients in another process keep it at a share of what it can
do; versions are published meanwhile. Once with one worker and once with two.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import describe, sentence
from benchmarks.paced_clients import CLIENTS, Sample, Span, paced_clients, per_second, span_of
from model_repository import HOLDOUT, ONNX_PLATFORM, Draft, publish, read_manifest, staging

RESULTS = Path(__file__).parent / "results"
LOAD = 0.7  # of what the server can do
PAUSE = 3.0  # seconds from one publication to the next
TARGET_MS = 50.0


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One server: at rest, and over its swaps."""

    workers: int
    capacity_per_second: float
    asked_per_second: float
    publish_to_switch_ms: float  # median
    seconds: dict[str, tuple[Span, ...]]  # "quiet" ones, and those around a "swap"


def main() -> int:
    """Write swap.json and swap.md; 1 where a stall exceeds the target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=__doc__)
    parser.add_argument("version", type=Path, help="a version's directory, say models/resnet18/1")
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    busy = [os.getloadavg()[0]]
    results = [_measure(arguments.version, workers, arguments.swaps) for workers in (1, 2)]
    busy.append(os.getloadavg()[0])
    _write(arguments.version, results, busy, arguments.output)
    return int(any(s.longest_stall_ms > TARGET_MS for r in results for s in r.seconds["swap"]))


def _measure(source: Path, workers: int, swaps: int) -> Result:
    images = np.load(source / HOLDOUT)["images"]
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch)
        _publish_copy(source, repository)
        with _server(repository, workers) as address:
            with paced_clients(address, images, math.inf) as samples:
                time.sleep(PAUSE)
            capacity = per_second(samples)
            with paced_clients(address, images, LOAD * capacity) as samples:
                time.sleep(PAUSE)
                published = [_publish_after_pause(source, repository) for _ in range(swaps)]
                time.sleep(PAUSE)
    return _result(workers, capacity, samples, published)


def _publish_copy(source: Path, repository: Path) -> float:
    """Publish the ONNX files and the holdout as the next version; when that was done."""
    manifest = read_manifest(source)
    variants = tuple(v for v in manifest.variants if v.platform == ONNX_PLATFORM)
    with staging(repository) as directory:
        for name in (*(variant.file for variant in variants), HOLDOUT):
            (directory / name).write_bytes((source / name).read_bytes())
        facts: dict[str, object] = {"labels": manifest.labels}
        publish(directory, Draft("resnet18", manifest.inputs, manifest.outputs, variants, facts))
        return time.monotonic()


def _publish_after_pause(source: Path, repository: Path) -> float:
    time.sleep(PAUSE)
    return _publish_copy(source, repository)


@contextlib.contextmanager
def _server(repository: Path, workers: int) -> Iterator[str]:
    """`python -m serving` as a user would start it, but on free ports; its address."""
    command = [sys.executable, "-m", "serving", "--model-repository", str(repository)]
    options = ["--poll-interval", "0.1", "--grpc-port", "0", "--metrics-port", "0"]
    options += ["--http-port", "0"]
    process = subprocess.Popen(
        [*command, *options, "--workers", str(workers)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    log, text = process.stderr, ""
    while "workers are ready" not in text if workers > 1 else "ready in" not in text:
        text += next(log)  # StopIteration: it did not start
    threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
    match = re.search(r"(?:gRPC|listen) on ([^\s,]+)", text)
    assert match
    try:
        yield match[1]
    finally:
        process.terminate()
        process.wait()


def _result(
    workers: int, capacity: float, samples: Sequence[Sample], published: Sequence[float]
) -> Result:
    first = {
        v: min(s.came for s in samples if s.version == v) for v in range(2, len(published) + 2)
    }
    switched = list(first.values())
    start = samples[0].came
    return Result(
        workers,
        round(capacity),
        round(per_second(samples)),
        round(statistics.median(b - a for a, b in zip(published, switched, strict=True)) * 1e3),
        # Before the first publication, and around each switch: most of the second is the loading.
        {
            "quiet": tuple(span_of(samples, start + 1 + n, start + 2 + n) for n in range(4)),
            "swap": tuple(span_of(samples, end - 0.75, end + 0.25) for end in switched),
        },
    )


def _write(source: Path, results: list[Result], busy: list[float], output: Path) -> None:
    machine = describe(("onnxruntime", "grpcio", "numpy"))
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": machine,
        "model_bytes": (source / "model.onnx").stat().st_size,
        "load_average_before_and_after": busy,
        "clients": CLIENTS,
        "target_ms": TARGET_MS,
        "results": [dataclasses.asdict(result) for result in results],
    }
    (output / "swap.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    swaps = len(results[0].seconds["swap"])
    lines = [
        "# What clients feel while ResNet18 is swapped under load",
        "",
        sentence(machine),
        "",
        f"{CLIENTS} clients in another process, one image per request, at {LOAD:.0%} of what the"
        f" server reached with them; {swaps} swaps. Load average before and after:"
        f" {busy[0]:.1f}, {busy[1]:.1f}. Milliseconds, in the second around a swap (0.75 s before"
        " the first answer of the new version to 0.25 s after); a stall is a time without any"
        f" answer. Target: no stall above {TARGET_MS:.0f} ms.",
        "",
        "| workers | requests/s | publication to first answer, median | | longest stall, median |"
        " longest stall, maximum | slowest answer, maximum | p99, median | p99, maximum |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(r, what, spans) for r in results for what, spans in r.seconds.items()),
    ]
    (output / "swap.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _row(result: Result, what: str, spans: tuple[Span, ...]) -> str:
    stalls = [span.longest_stall_ms for span in spans]
    p99s = [span.p99_ms for span in spans]
    figures = (
        *(statistics.median(stalls), max(stalls), max(span.slowest_answer_ms for span in spans)),
        *(statistics.median(p99s), max(p99s)),
    )
    latency = f"{result.publish_to_switch_ms:.0f}" if what == "swap" else "-"
    return (
        f"| {result.workers} | {result.asked_per_second:.0f} | {latency} | {what} | "
        + " | ".join(f"{each:.1f}" for each in figures)
        + " |"
    )


if __name__ == "__main__":
    sys.exit(main())
