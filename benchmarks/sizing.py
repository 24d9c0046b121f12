"""How many cores a rate of images takes: ``python -m benchmarks.sizing`` prints the table.

Divides a rate by what one core was measured to answer (results/serving.json), and some of that left
idle. ``--own`` adds what you measured; ``--write`` puts the table into deploy/SIZING.md.
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

SERVING = Path(__file__).parent / "results" / "serving.json"
PAGE = Path(__file__).parent.parent / "deploy" / "SIZING.md"
START, END = "<!-- python -m benchmarks.sizing --write -->", "<!-- end -->"
CONTESTANTS = {"digits": "fp32", "digits int8": "int8"}
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
        if result["contestant"] in CONTESTANTS
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


def filled_in(page: str, text: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{text}{END}{after}"


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
    rows = measured(json.loads(SERVING.read_text(encoding="utf-8"))) + arguments.own
    written = table(rows, arguments.utilisation, arguments.cores_per_replica)
    if arguments.write:
        PAGE.write_text(filled_in(PAGE.read_text(encoding="utf-8"), written), encoding="utf-8")
    else:
        print(written, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
