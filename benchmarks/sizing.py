"""How many cores a rate of images takes: ``python -m benchmarks.sizing`` prints the table.

Divides a rate by what one core was measured to answer (results/serving.json), and some of that left
idle. ``--own`` adds what you measured; ``--write`` puts all that follows from the figures into
deploy/SIZING.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import fill_in
from benchmarks.serving.targets import OURS, OURS_INT8, Figure

SERVING = Path(__file__).parent / "results" / "serving.json"
PAGE = Path(__file__).parent.parent / "deploy" / "SIZING.md"
START = "<!-- python -m benchmarks.sizing --write -->"
CONTESTANTS = {OURS: "fp32", OURS_INT8: "int8"}
IMAGES_PER_REQUEST = ("1", "32")
RATES = (1_000, 100_000, 1_000_000)  # images/s
UTILISATION = 0.7  # of what was measured: the rest is for peaks, a lost replica, a rolling update
CORES_PER_REPLICA = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What one core, or whatever a replica consists of, answers in a second."""

    name: str
    images_per_request: str
    images_per_second: float

    def units(self, rate: float, utilisation: float) -> int:
        """So many of them answer `rate` images/s while that share of them is busy."""
        return math.ceil(rate / (self.images_per_second * utilisation))


def measured(record: dict[str, Any]) -> list[Measured]:
    """Our server's medians over the rounds, each of one core."""
    return [
        Measured(
            f"{result['model']}, {CONTESTANTS[result['contestant']]}",
            rows,
            statistics.median(entry["images_per_second"][rows] for entry in result["rounds"]),
        )
        for result in record["compared"]["results"]
        if result["contestant"] in CONTESTANTS and result["rounds"]
        for rows in IMAGES_PER_REQUEST
    ]


def table(rows: list[Measured], utilisation: float, cores_per_replica: float) -> str:
    """Markdown: cores, and replicas of so many, for each rate."""
    head = ["model", "images per request", "images/s per core"]
    head += [f"{rate:,} images/s" for rate in RATES]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row.name, row.images_per_request, f"{row.images_per_second:,.0f}"]
        for rate in RATES:
            cores = row.units(rate, utilisation)
            cells.append(f"{cores:,} ({math.ceil(cores / cores_per_replica):,})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figures(record: dict[str, Any]) -> str:
    """What else of the page is measured: Markdown, with the commit that it was measured at."""
    compared = record["compared"]
    rates = {
        (each.name, each.images_per_request): each.images_per_second for each in measured(record)
    }
    names = dict.fromkeys(name for name, _ in rates)
    many = ", ".join(f"{rates[name, '32'] / rates[name, '1']:.1f} times ({name})" for name in names)
    single, by_32 = (
        rates["resnet18, int8", rows] / rates["resnet18, fp32", rows] for rows in IMAGES_PER_REQUEST
    )
    fields = ("requests_per_second", "cpu_us", "rss_mb", "peak_rss_mb")
    rate, cpu, rss, peak = (Figure(OURS, "linear", each).of(compared) or 0 for each in fields)
    return f"""
Measured at commit {compared["machine"]["commit"]}:

- **Many images in one request**, 32 beside one: {many} as many images.
- **int8** gives `resnet18` {single:.1f} times as many single images, {by_32:.1f} times by 32.
- **One process** takes in {rate:,.0f} requests/s, whatever computes, at {cpu:.1f} µs of CPU.
- **Memory**: {rss:.0f} MB for a process with {compared["plan"]["models_served"]} models,
  {peak:.0f} MB at its peak, times `--workers`.
"""


def positive(text: str) -> float:
    """What one can divide by."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def own(text: str) -> Measured:
    """NAME=IMAGES_PER_SECOND."""
    name, _, rate = text.rpartition("=")
    return Measured(name, "", positive(rate))


def main() -> int:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument(
        "--own", metavar="NAME=IMAGES_PER_SECOND", type=own, action="append", default=[]
    )
    parser.add_argument("--utilisation", type=positive, default=UTILISATION)
    parser.add_argument("--cores-per-replica", type=positive, default=CORES_PER_REPLICA)
    parser.add_argument("--write", action="store_true", help="into deploy/SIZING.md")
    arguments = parser.parse_args()
    record = json.loads(SERVING.read_text(encoding="utf-8"))
    rows = measured(record) + arguments.own
    written = table(rows, arguments.utilisation, arguments.cores_per_replica) + figures(record)
    if arguments.write:
        fill_in(PAGE, START, written)
    else:
        print(written, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
