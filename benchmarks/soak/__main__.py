"""``python -m benchmarks.soak models/linear/1``: soak.json and soak.md; 1 where something grows."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import describe, sentence
from benchmarks.soak.run import Plan, soak
from benchmarks.soak.samples import (
    GROWTH_MB,
    GROWTH_SHARE,
    POOLED_THREADS,
    VERSION_DESCRIPTORS,
    VERSION_MB,
    Sample,
    Verdict,
    judge,
)

RESULTS = Path(__file__).parent.parent / "results"
SLICES = 20
# Over grpcio alone a request costs thirty times as much.
SHARES = {"native": 1.0, "grpcio": 0.2}
# Of the reloads, those that publish, on a server of their own; with as few of the requests as that.
PUBLISHED, ASKED_MEANWHILE = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Soaked:
    """One server's samples, and what they say."""

    plan: Plan
    seconds: float
    samples: tuple[Sample, ...]
    verdict: Verdict


def main() -> int:
    """Soak a server over each transport."""
    arguments = _parser().parse_args()
    machine = describe(("onnxruntime", "grpcio", "numpy"))
    soaked = []
    for transport in arguments.transports:
        requests = round(SHARES[transport] * arguments.requests)
        reloads = round(SHARES[transport] * arguments.reloads)
        published = round(PUBLISHED * reloads)
        few = round(ASKED_MEANWHILE * requests)
        for plan in (
            Plan(requests - few, reloads - published, SLICES, transport),
            Plan(few, published, SLICES, transport, publish=True),
        ):
            soaked.append(_soak(arguments.version, plan))
            _write(machine, soaked, arguments.output)
    return int(any(each.verdict.faults for each in soaked))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("version", type=Path, help="a version's directory, say models/linear/1")
    parser.add_argument("--requests", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument("--reloads", type=int, default=500, help="[%(default)s]")
    parser.add_argument("--transports", nargs="+", default=tuple(SHARES), choices=tuple(SHARES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def _soak(version: Path, plan: Plan) -> Soaked:
    began = time.monotonic()
    samples = soak(version, plan, lambda each: print(plan.transport, each, flush=True))
    return Soaked(
        plan, time.monotonic() - began, tuple(samples), judge(samples, published=plan.publish)
    )


def _write(machine: dict[str, object], soaked: list[Soaked], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.soak", *sys.argv[1:]])
    facts = {"machine": machine, "command": command, "servers": [asdict(each) for each in soaked]}
    (output / "soak.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# What the server keeps of a million requests",
        "",
        f"`{command}` on {sentence(machine)}.",
        "",
        "One process of two models. Requests go to one by h2load (nine in ten), typed, on streams,"
        " over HTTP as JSON and images, with feedback, wrong, cancelled and late, over connections"
        " that come and go; the other is unloaded and loaded meanwhile. Each sample is taken at"
        " rest. The second quarter is compared with the last:"
        f" {GROWTH_SHARE:.0%} or {GROWTH_MB:g} MB more RSS are allowed, no descriptor, and"
        f" {POOLED_THREADS} threads, which pools start as they need them.",
        "",
        "On a second server the other model is published and swapped instead. A version's series"
        " are kept for as long as a process runs, as no counter may go back: each number that is"
        f" new to it may cost {VERSION_MB:g} MB, and {VERSION_DESCRIPTORS:g} descriptors, of the"
        " files that they are counted in. Whoever publishes every few minutes, for weeks, restarts"
        " workers one by one (SIGHUP).",
    ]
    for each in soaked:
        what = "published and swapped" if each.plan.publish else "unloaded and loaded"
        lines += ["", f"## {each.plan.transport}, {what}", "", *_section(each)]
    (output / "soak.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(soaked: Soaked) -> list[str]:
    verdict = soaked.verdict
    return [
        f"{soaked.plan.requests:,} requests and {soaked.plan.reloads} reloads in"
        f" {soaked.seconds:.0f} s. RSS grew by {verdict.growth_mb:.1f} MB (allowed"
        f" {verdict.allowed_mb:.1f}), {verdict.slope_mb:.2f} MB a slice.",
        *(f"**{fault}**" for fault in verdict.faults),
        "",
        "| requests | reloads | RSS MB | Pss MB | descriptors | threads |",
        "|---|---|---|---|---|---|",
        *(
            f"| {each.requests:,} | {each.reloads} | {each.rss_mb:.1f} | {each.pss_mb:.1f}"
            f" | {each.descriptors} | {each.threads} |"
            for each in soaked.samples
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
