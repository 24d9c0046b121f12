"""``python -m benchmarks.styles``: which way of receiving calls and sending answers is the fastest.

The same inference behind gRPC servers of several styles, and servers that do nothing, on one core;
h2load on the other. Writes benchmarks/results/styles.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, sentence
from benchmarks.serving.contestants import ROOT, Contestant, noop
from benchmarks.serving.measure import one_at_a_time, single_images
from benchmarks.serving.models import Model, load_model
from benchmarks.serving.peers import BUILT_IN, Launch, Tuning
from benchmarks.serving.process import cores, free_ports
from benchmarks.serving.session import started
from benchmarks.serving.wire import V2

RESULTS = Path(__file__).parent / "results"
STYLES = ("completion", "public", "waiting", "aio")
MODELS = ("linear", "resnet18")
NOOP = "no-op"


def main() -> int:
    """Measure in rounds, alternating the styles; write and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.styles", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    arguments = parser.parse_args()
    machine = describe(("grpcio", "onnxruntime", "numpy"))
    used = cores()
    os.sched_setaffinity(0, {used.load})
    repository = arguments.model_repository.resolve()
    measured: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for name, contestant, model in _pairs(repository):
            with started(contestant, model, BUILT_IN, used) as session:
                single = single_images(session, arguments.seconds)
                alone = one_at_a_time(session, arguments.seconds / 2)
            figures = {
                "rate": single.load.rate,
                "cpu_us": single.cpu_us,
                "p50_ms": alone.percentile(50) * 1e3,
            }
            measured.setdefault(f"{name}, {model.name}", []).append(figures)
            print(name, model.name, {key: round(value, 2) for key, value in figures.items()})
    record = {"machine": machine, "rounds": arguments.rounds, "measured": measured}
    (RESULTS / "styles.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "styles.md").write_text(_table(record), encoding="utf-8")
    print(_table(record))
    return 0


def _pairs(repository: Path) -> list[tuple[str, Contestant, Model]]:
    linear, resnet18 = (load_model(repository, name, "fp32") for name in MODELS)
    pairs = [(f"{NOOP}, {style}", _noop(style), linear) for style in ("sync", "aio")]
    return pairs + [
        (each, _style(each, repository), m) for each in STYLES for m in (linear, resnet18)
    ]


def _noop(style: str) -> Contestant:
    return Contestant(NOOP, V2, noop(style), fixed=True)


def _style(style: str, repository: Path) -> Contestant:
    def launch(model: Model, tuning: Tuning, directory: Path) -> Launch:
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "benchmarks.serving.style_server", "--style", style]
        command += ["--port", str(port), "--model-repository", str(repository)]
        return Launch(command, port, {"PYTHONPATH": str(ROOT)})

    return Contestant(style, V2, launch)


def _table(record: dict[str, Any]) -> str:
    lines = [
        "# Server styles",
        "",
        "How calls are received and answers sent: `completion` is the product's; see"
        " `benchmarks/serving/style_server.py`. Medians of"
        f" {record['rounds']} rounds, single images, one core. {sentence(record['machine'])}",
        "",
        "| style, model | requests/s, 64 in flight | of the sync no-op | CPU, µs per request | p50"
        " one at a time, ms |",
        "|---|---|---|---|---|",
    ]
    medians = {
        name: {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        for name, rounds in record["measured"].items()
    }
    base = medians[f"{NOOP}, sync, linear"]["rate"]
    for name, each in medians.items():
        lines.append(
            f"| {name} | {each['rate']:,.0f} | {each['rate'] / base:.2f} | {each['cpu_us']:.0f} |"
            f" {each['p50_ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
