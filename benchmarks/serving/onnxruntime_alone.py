"""ONNX Runtime without a server: images per second at several batch sizes, as JSON on stdout.

A process of its own, so that it can be pinned to the core that servers are pinned to.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.serving.models import Model, load_model, session


def main() -> None:
    """Print {rows: images per second}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-repository", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="per batch size")
    arguments = parser.parse_args()
    model = load_model(arguments.model_repository, arguments.model, arguments.precision)
    print(
        json.dumps({rows: _throughput(model, rows, arguments.seconds) for rows in arguments.rows})
    )


def _throughput(model: Model, rows: int, seconds: float) -> float:
    run = session(model.onnx).run
    inputs = {"images": model.batch(rows)[0]}
    for _ in range(3):
        run(None, inputs)
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        run(None, inputs)
        runs += 1
    return rows * runs / elapsed


if __name__ == "__main__":
    main()
