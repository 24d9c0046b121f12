"""How long loading a model keeps Python's other threads waiting: ``python -m benchmarks.stall``.

One thread asks for the interpreter every millisecond while another loads. The longest gap between
two of its turns is what a request that arrives at the worst moment waits for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from benchmarks.machine import describe, sentence
from model_repository import ONNX_PLATFORM, Manifest, read_manifest
from serving.device import Runtime
from serving.model import load
from serving.session import verified

RESULTS = Path(__file__).parent / "results"
TICK = 0.001  # seconds
TARGET_MS = 50.0


@dataclasses.dataclass(frozen=True, slots=True)
class Stall:
    """What loading did to the other thread over all the runs; milliseconds."""

    what: str
    took_median_ms: float
    longest_gap_median_ms: float
    longest_gap_max_ms: float


def main() -> int:
    """Write stall.json and stall.md; 1 where the server's own way misses the target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stall", description=__doc__)
    parser.add_argument("version", type=Path, help="a version's directory, say models/resnet18/1")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ways = _ways(arguments.version, Path(scratch))
        stalls = [_measure(what, work, arguments.runs) for what, work in ways.items()]
    _write(arguments.version, arguments.runs, stalls, arguments.output)
    own = [stall for stall in stalls if stall.what.startswith("serving.model.load")]
    return 1 if any(stall.longest_gap_max_ms > TARGET_MS for stall in own) else 0


def _ways(directory: Path, scratch: Path) -> dict[str, Callable[[], object]]:
    manifest = read_manifest(directory)
    path = directory / "model.onnx"
    content = path.read_bytes()
    optimised = scratch / "optimised.onnx"
    _session(str(path), optimised=optimised)
    fp32 = Runtime("cpu", "fp32", 1)
    return {
        "nothing, for 50 ms": lambda: time.sleep(0.05),
        "copying and hashing the file": lambda: _copy(directory, manifest),
        "InferenceSession(bytes)": lambda: _session(content),
        "InferenceSession(path)": lambda: _session(str(path)),
        "InferenceSession(path), preoptimised": lambda: _session(str(optimised), optimise=False),
        "serving.model.load, fp32": lambda: load(directory, manifest, fp32),
        "serving.model.load, auto": lambda: load(
            directory, manifest, dataclasses.replace(fp32, precision="auto")
        ),
    }


def _copy(directory: Path, manifest: Manifest) -> None:
    variant = manifest.variant(ONNX_PLATFORM, "fp32")
    assert variant is not None
    with verified(directory, variant.file, variant.sha256):
        pass


def _session(
    source: str | bytes, *, optimise: bool = True, optimised: Path | None = None
) -> object:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _measure(what: str, work: Callable[[], object], runs: int) -> Stall:
    work()  # the first time reads the disk
    measured = [_longest_gap(work) for _ in range(runs)]
    stall = Stall(
        what,
        round(statistics.median(took for took, _ in measured) * 1000, 2),
        round(statistics.median(gap for _, gap in measured) * 1000, 2),
        round(max(gap for _, gap in measured) * 1000, 2),
    )
    print(_row(stall), flush=True)
    return stall


def _longest_gap(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that the work took, and the longest time between two turns of the ticking thread."""
    ticking, done = threading.Event(), threading.Event()
    gaps = [0.0]

    def tick() -> None:
        last = time.perf_counter()
        ticking.set()
        while not done.is_set():
            time.sleep(TICK)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    ticking.wait()
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    done.set()
    thread.join()
    return took, max(gaps)


def _row(stall: Stall) -> str:
    return (
        f"| {stall.what} | {stall.took_median_ms:.1f} | {stall.longest_gap_median_ms:.1f} |"
        f" {stall.longest_gap_max_ms:.1f} |"
    )


def _write(directory: Path, runs: int, stalls: list[Stall], output: Path) -> None:
    machine = describe(("onnxruntime", "numpy"))
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": machine,
        "model_bytes": (directory / "model.onnx").stat().st_size,
        "runs": runs,
        "target_ms": TARGET_MS,
        "stalls": [dataclasses.asdict(stall) for stall in stalls],
    }
    (output / "stall.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# How long loading ResNet18 keeps other Python threads waiting",
        "",
        sentence(machine),
        "",
        f"{runs} runs each, one thread per session; milliseconds. Target: {TARGET_MS:.0f} ms.",
        "",
        "| what the other thread did | took, median | longest gap, median | longest gap, maximum |",
        "|---|---|---|---|",
        *map(_row, stalls),
    ]
    (output / "stall.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
