"""``make chaos``: faults in a random order under steady load; 1 where any request's fate was not
as it should be.

One server of two workers on loopback, callers at 70% of what they can get from it, for as long as
is said. The seed decides which faults come when; the machine, how they meet the requests.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.callers import PLAIN, RETRYING, STREAM, callers
from benchmarks.chaos.faults import FAULTS, World, do, possible
from benchmarks.chaos.ledger import RIGHT, Ledger
from benchmarks.chaos.repository import repository
from benchmarks.chaos.server import Server, faketime
from benchmarks.machine import describe, sentence

RESULTS = Path(__file__).parent.parent / "results"
CALLERS = (RETRYING, PLAIN, STREAM) * 2
LOAD = 0.7  # of what the callers get, one request after the other each
WARM_UP = 3.0  # seconds of that
PAUSE = (0.5, 2.0)  # seconds between faults


def main() -> int:
    """Print the ledger; write chaos-TRANSPORT.json and .md where --output says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="[%(default)g]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--transport", default="auto", choices=("auto", "native", "grpcio"))
    parser.add_argument(
        "--every-fault", action="store_true", help="fail where one of them cannot be done here"
    )
    parser.add_argument("--output", type=Path, help="a directory for the ledger's JSON and table")
    arguments = parser.parse_args()
    with _world(arguments.transport, arguments.seed) as world:
        if arguments.every_fault and len(possible(world)) < len(FAULTS):
            parser.error(f"not possible here: {sorted(set(FAULTS) - set(possible(world)))}")
        capacity = _capacity(world)
        with callers(world.server.address, world.ledger, CALLERS, LOAD * capacity, arguments.seed):
            _do_faults(world, arguments.seconds)
        status = world.server.stop()
        facts = _facts(world, arguments, capacity, status)
    _show(facts)
    if arguments.output:
        _write(facts, arguments.output)
    return int(bool(facts["violations"]))


@contextmanager
def _world(transport: str, seed: int) -> Iterator[World]:
    with repository() as models, tempfile.TemporaryDirectory() as scratch:
        models.publish()
        models.publish()
        clock = Path(scratch, "clock") if faketime() else None
        if clock:
            clock.write_text("+0\n")
        server = Server(models.path, transport, clock)
        try:
            yield World(server, models, Ledger(), clock, random.Random(seed))  # nosec B311 # no secret
        finally:
            server.stop()


def _capacity(world: World) -> float:
    """Requests a second that the callers get, each asking again as it is answered."""
    ledger = Ledger()
    with callers(world.server.address, ledger, (RETRYING, PLAIN) * 3, float("inf"), 1):
        time.sleep(WARM_UP)
    return len(ledger.entries) / WARM_UP


def _do_faults(world: World, seconds: float) -> None:
    """Each once, in a random order, and again until the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        names = possible(world)
        world.random.shuffle(names)
        for name in names:
            if time.monotonic() > end:
                break
            do(world, name)
            time.sleep(world.random.uniform(*PAUSE))


def _facts(
    world: World, arguments: argparse.Namespace, capacity: float, status: int
) -> dict[str, object]:
    ledger = world.ledger
    notes = [f"{fault.name}: {fault.note}" for fault in ledger.faults if "VIOLATION" in fault.note]
    violations = [
        f"{entry.caller}: {entry.outcome} {entry.details[:100]}" for entry in ledger.violations()
    ]
    if ledger.unanswered or ledger.repeated:
        notes.append(f"{ledger.unanswered} never ended, {ledger.repeated} ended twice")
    if status:
        notes.append(f"the server's exit status was {status}")
    if tracebacks := world.server.tracebacks():
        notes.append(f"the server logged {tracebacks} tracebacks")
    return {
        "machine": describe(("onnxruntime", "grpcio", "numpy")),
        "transport": arguments.transport,
        "seconds": arguments.seconds,
        "seed": arguments.seed,
        "capacity_per_second": round(capacity),
        "asked_per_second": round(LOAD * capacity),
        "requests": len(ledger.entries),
        "callers": {kind: dict(counts) for kind, counts in ledger.by_caller().items()},
        "faults": _told_of_faults(ledger),
        "not_possible_here": sorted(set(FAULTS) - set(possible(world))),
        "violations": notes + violations,
    }


def _told_of_faults(ledger: Ledger) -> dict[str, dict[str, int]]:
    told: dict[str, dict[str, int]] = {}
    for fault in ledger.faults:
        each = told.setdefault(fault.name, {"times": 0, "failed_as_declared": 0})
        each["times"] += 1
        each["failed_as_declared"] += ledger.excused(fault)
    return told


def _show(facts: dict[str, object]) -> None:
    console = Console(width=110)
    console.print(
        f"{facts['requests']} requests at {facts['asked_per_second']}/s, 70% of what these callers"
        f" got; {facts['seconds']:g} s, seed {facts['seed']}, transport {facts['transport']}"
    )
    console.print(_table("caller", facts["callers"]))
    console.print(_table("fault", facts["faults"]))
    for name in facts["not_possible_here"]:  # type: ignore[attr-defined]
        console.print(f"not possible here: {name}")
    violations = facts["violations"]
    assert isinstance(violations, list)
    console.print(f"violations: {len(violations)}")
    for each in violations[:20]:
        console.print(f"  {each}", markup=False)


def _columns(rows: dict[str, dict[str, int]]) -> list[str]:
    """Right answers first."""
    return sorted({name for row in rows.values() for name in row}, key=lambda n: (n != RIGHT, n))


def _table(title: str, rows: object) -> Table:
    assert isinstance(rows, dict)
    columns = _columns(rows)
    table = Table(title, *columns, box=box.SIMPLE)
    for name, row in rows.items():
        table.add_row(name, *(str(row.get(column, 0)) for column in columns))
    return table


def _write(facts: dict[str, object], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    name = f"chaos-{facts['transport']}"
    (output / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    machine, violations = facts["machine"], facts["violations"]
    assert isinstance(machine, dict)
    assert isinstance(violations, list)
    lines = [
        f"# Faults under steady load, over {facts['transport']}",
        "",
        f"`make chaos SEED={facts['seed']}`, {facts['seconds']:g} s: {facts['requests']:,} requests"
        f" at {facts['asked_per_second']:,}/s, {LOAD:.0%} of what these callers got."
        f" {sentence(machine)}",
        "",
        "Requests that were lost, answered twice or wrongly, or failed though no fault declared"
        f" it: **{len(violations)}**.",
        "",
        *_markdown("caller", facts["callers"]),
        "",
        *_markdown("fault", facts["faults"]),
    ]
    (output / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown(title: str, rows: object) -> Iterator[str]:
    assert isinstance(rows, dict)
    columns = _columns(rows)
    yield f"| {title} | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in rows.items():
        yield f"| {name} | " + " | ".join(f"{row.get(column, 0):,}" for column in columns) + " |"


if __name__ == "__main__":
    sys.exit(main())
