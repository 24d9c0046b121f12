"""README's figures of speed: ``python -m benchmarks.speed`` prints them, ``--write`` writes them.

A short table of results/serving.json, and which targets are missed. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.pages import fill_in
from benchmarks.serving.table import grid, judged, said
from benchmarks.serving.targets import (
    ALONE,
    BEST,
    GRPCIO,
    MLSERVER,
    OURS,
    OURS_INT8,
    TRITON,
    Figure,
    Verdict,
)
from benchmarks.sizing import SERVING

PAGE = Path(__file__).parent.parent / "README.md"
START = "<!-- python -m benchmarks.speed --write -->"
NAMES = {
    OURS: "**digits**, fp32",
    OURS_INT8: "**digits**, int8",
    TRITON: "Triton 2.51, Python backend",
    "torchserve": "TorchServe 0.12, TorchScript",
    MLSERVER: "MLServer 1.7.1",
    GRPCIO: "digits over grpcio, fp32",
    "digits grpcio int8": "digits over grpcio, int8",
    "no-op": "grpcio, doing nothing",
}
MODELS = ("linear", "resnet18")
HEAD = ("one core", "linear, requests/s", "resnet18", "CPU µs each", "p50 one at a time, ms")


def table(record: dict[str, Any]) -> str:
    """Markdown; of two figures in a cell, the first is of linear."""
    compared = record["compared"]

    def cell(name: str, field: str, form: str) -> str:
        values = [Figure(name, model, field).of(compared) for model in MODELS]
        return " / ".join("" if value is None else format(value, form) for value in values)

    rows = []
    for name, shown in NAMES.items():
        rates = [Figure(name, model, "requests_per_second").of(compared) for model in MODELS]
        if any(rates):
            row = [shown, *("" if rate is None else f"{rate:,.0f}" for rate in rates)]
            rows.append([*row, cell(name, "cpu_us", ".1f"), cell(name, "alone_p50_ms", ".2f")])
    best = [Figure(ALONE, model, "images_per_second", BEST).of(compared) for model in MODELS]
    rates_alone = ["" if each is None else f"{each:,.0f} images/s" for each in best]
    rows.append(["ONNX Runtime alone, the best of its batches", *rates_alone, "", ""])
    return grid(HEAD, rows)


def targets(verdicts: list[Verdict]) -> str:
    """How many are met, and by how much the others are missed."""
    missed = [each for each in verdicts if not each.met]
    counted = f"Of {len(verdicts)} targets {len(verdicts) - len(missed)} are met."
    if missed:
        counted += " Missed, [with the profile](benchmarks/results/serving-profile.md):"
    lines = [
        f"- {each.text}: {said(each.value)}, {'at most' if each.at_most else 'at least'}"
        f" {each.bound:,g} asked for"
        for each in missed
    ]
    return "\n".join([counted, *lines]) + "\n"


def text(record: dict[str, Any]) -> str:
    """All that is between the marks."""
    commits = sorted({section["machine"]["commit"] for section in record.values()})
    at = f"commit {commits[0]}" if len(commits) == 1 else f"commits {' and '.join(commits)}"
    measured = f"Medians of {record['compared']['plan']['rounds']} rounds at {at}."
    return f"{table(record)}\n{measured} {targets(judged(record))}"


def main() -> int:
    """Print them, or write them into README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into README.md")
    written = text(json.loads(SERVING.read_text(encoding="utf-8")))
    if parser.parse_args().write:
        fill_in(PAGE, START, written)
    else:
        print(written, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
