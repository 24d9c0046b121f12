"""``make fuzz``: bad input to each target, so many cases; 1 where any was taken wrongly.

A case is known by the seed and its number; what is found is kept in build/fuzz/, to be replayed by
--replay and to become a file of tests/corpus/.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from benchmarks.fuzz.running import Report, run
from benchmarks.fuzz.targets import TARGETS


def main() -> int:
    """Print a line for each target; append it as JSON to what --output names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all of them")
    parser.add_argument("--count", type=int, help="cases of each; else what each is recorded with")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument(
        "--first", type=int, default=0, help="the first case's number [%(default)s]"
    )
    parser.add_argument("--output", type=Path, help="a file of one JSON object a line")
    parser.add_argument("--replay", type=Path, nargs="+", help="files to judge, of one target")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    warnings.simplefilter("error")  # a bad request must not make a library warn
    if arguments.replay:
        return _replay(TARGETS[arguments.targets[0]].opened(), arguments.replay)
    failed = False
    for name in arguments.targets or TARGETS:
        count = arguments.count or TARGETS[name].cases
        report = run(name, TARGETS[name].opened, arguments.seed, count, arguments.first)
        _show(report)
        failed = failed or bool(report.wrong)
        if arguments.output:
            with arguments.output.open("a") as lines:
                lines.write(json.dumps(asdict(report)) + "\n")
    return int(failed)


def _replay(opened: AbstractContextManager[object], files: list[Path]) -> int:
    with opened as target:
        for path in files:
            print(path, target.judge([path.read_bytes()]))  # type: ignore[attr-defined]
    return 0


def _show(report: Report) -> None:
    before, after = (f"{size / 2**20:.0f}" for size in report.memory)
    counts = sorted(report.outcomes.items(), key=lambda each: -each[1])
    outcomes = ", ".join(f"{name} {number:,}" for name, number in counts[:12])
    print(
        f"{report.target}: {report.cases:,} cases in {report.seconds:.0f} s, seed {report.seed},"
        f" {before} to {after} MiB: {outcomes}",
        flush=True,
    )
    if report.wrong:
        print(f"  WRONG (see build/fuzz/): {report.wrong}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
