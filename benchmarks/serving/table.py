"""Markdown of what a run wrote. Nothing is measured here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.machine import sentence
from benchmarks.serving.measure import ROWS
from benchmarks.serving.targets import (
    ALONE,
    OURS,
    Figure,
    Record,
    Verdict,
    connections_verdict,
    cost_share,
    load_verdicts,
    metrics_verdicts,
    over,
    overload_verdicts,
    passed_on_verdicts,
    rate_share,
    verdicts,
)

_HOW = """\
The server and all that it starts have one core, what asks it another. Requests are single 28x28
images, 64 in flight from h2load (4 connections, 16 each); "alone" is one in flight; image batches
have 4 in flight. Figures are medians over the rounds, in which the contestants alternate. Answers
are compared with ONNX Runtime's for the same images before and during each load, and h2load's
bytes with what that many right answers take; "lost" of those asked under load had none after 5 s.
CPU, RSS and its peak are sums over a server's processes. A peer's settings are requests (Triton:
images) per batch and the longest wait for them; "few" are those that suit it best with few requests
in flight, alone or of many images. "digits" answers by the native lane, "digits grpcio" by grpcio.
TorchServe runs the same model as TorchScript and is asked over its own gRPC service, Predictions.
"others" is what the two cores spent on anything else meanwhile: more than a few percent, and the
figures are not to be trusted.
"""


def table(record: Record) -> str:
    """All sections that are there."""
    parts = ["# Serving, side by side\n"]
    if found := judged(record):
        parts.append(_targets(found))
    if "compared" in record:
        parts.append(_compared(record["compared"]))
    if "load" in record:
        parts.append(_load(record["load"]))
    if "overload" in record:
        parts.append(_overload(record["overload"]))
    if "metrics" in record:
        parts.append(_metrics(record["metrics"]))
    if "passed_on" in record:
        parts.append(_passed_on(record["passed_on"]))
    if "connections" in record:
        parts.append(_connections(record["connections"]))
    return "\n".join(parts)


def all_met(record: Record) -> bool:
    """No measured target is missed."""
    return all(verdict.met for verdict in judged(record))


def judged(record: Record) -> list[Verdict]:
    """What came of the targets of all sections that are there."""
    found = verdicts(record["compared"]) if "compared" in record else []
    if "load" in record:
        found += load_verdicts(record["load"])
    if "overload" in record:
        found += overload_verdicts(record["overload"])
    if "metrics" in record:
        found += metrics_verdicts(record["metrics"])
    if "passed_on" in record:
        found += passed_on_verdicts(record["passed_on"])
    if "connections" in record and (verdict := connections_verdict(record["connections"])):
        found.append(verdict)
    return found


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _targets(found: list[Verdict]) -> str:
    rows = [
        (
            each.text,
            f"{'≤' if each.at_most else '≥'} {each.bound:g}",
            said(each.value),
            "met" if each.met else "MISSED",
        )
        for each in found
    ]
    missed = "" if all(each.met for each in found) else _MISSED
    return grid(("target", "asked for", "measured", ""), rows) + missed


def said(value: float) -> str:
    """A figure, unless there is none."""
    if math.isnan(value):
        return "not measured"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


_MISSED = """
[What the profile says](serving-profile.md) of those that are missed.
"""


def _compared(record: Record) -> str:
    plan, versions = record["plan"], record["peers"]
    peers = "; ".join(
        f"{peer}: " + ", ".join(f"{name} {version}" for name, version in each.items())
        for peer, each in versions.items()
    )
    parts = [
        f"`python -m benchmarks.serving` on {sentence(record['machine'])}; {record['h2load']}."
        f" {peers or 'No peer is installed'}.\n",
        f"{plan['rounds']} rounds, {plan['seconds']:g} s per load; our servers hold all"
        f" {plan['models_served']} models; the no-op server's style is {plan['noop_style']}.\n",
        _HOW,
        *(_model(record, model) for model in plan["models"]),
        *(f"{name}: {why}.\n" for name, why in record["skipped"].items()),
        *_failures(record),
    ]
    if record["tuning"]:
        parts.append(_tuning(record))
    return "\n".join(parts)


def _model(record: Record, model: str) -> str:
    head = ["", "requests/s", "of digits", "p50 ms", "p99 ms", "alone p50", "alone p99"]
    head += [f"images/s by {rows}" for rows in ROWS]
    head += ["CPU µs", "RSS MB", "peak MB", "ready s", "settings", "checked", "lost", "others"]
    rows = [_row(record, each) for each in record["results"] if each["model"] == model]
    return f"## {model}\n\n" + grid(head, rows)


def _row(record: Record, result: Record) -> list[str]:
    name, model = result["contestant"], result["model"]

    def median(field: str, form: str, rows: int = 0) -> str:
        value = Figure(name, model, field, rows).of(record)
        return "" if value is None else format(value, form)

    rate = Figure(name, model, "requests_per_second").of(record)
    ours = Figure(OURS, model, "requests_per_second").of(record)
    cells = [name, median("requests_per_second", ",.0f")]
    cells += [f"{rate / ours:.2f}" if rate and ours else ""]
    cells += [median(each, ".2f") for each in ("p50_ms", "p99_ms", "alone_p50_ms", "alone_p99_ms")]
    cells += [median("images_per_second", ",.0f", rows) for rows in ROWS]
    cells += [median("cpu_us", ".1f"), median("rss_mb", ".0f"), median("peak_rss_mb", ".0f")]
    settings = result.get("settings", {})
    chosen = list(dict.fromkeys(settings.values()))
    cells += [median("ready_seconds", ".2f"), "; few ".join(chosen)]
    if name.startswith(ALONE):
        return [*cells, "", "", ""]
    cells += [
        f"{sum(each.get(field, 0) for each in result['rounds']):,}"
        for field in ("answers_checked", "answers_lost")
    ]
    return [*cells, median("others_cpu", ".0%")]


def _failures(record: Record) -> list[str]:
    return [
        f"{each['contestant']}, {each['model']}: a round failed: `{failure.splitlines()[0]}`\n"
        for each in record["results"]
        for failure in each["failures"]
    ]


def _tuning(record: Record) -> str:
    head = ("", "model", "settings", "requests/s", "alone p50 ms")
    rows = [
        (
            each["contestant"],
            each["model"],
            each["setting"],
            f"{each['requests_per_second']:,.0f}" if "failure" not in each else "failed",
            f"{each['alone_p50_ms']:.2f}" if "failure" not in each else "",
        )
        for each in record["tuning"]
    ]
    return "## The peers' settings, tried before\n\n" + grid(head, rows)


def _load(record: Record) -> str:
    rows = []
    for each in record["servers"]:
        for load in each["loads"]:
            latency = load["latency_ms"]
            other = {code: n for code, n in load["statuses"].items() if code != "OK"}
            rows.append(
                [each["contestant"], each["model"], f"{each['capacity']:,.0f}"]
                + [f"{load['share']:.0%}", f"{load['offered_per_second']:,.0f}"]
                + [f"{load['answered_per_second']:,.0f}"]
                + [f"{latency[p]:.2f}" if latency else "" for p in ("p50", "p90", "p99", "p99.9")]
                + [", ".join(f"{code} {n:,}" for code, n in other.items())]
                + [f"{load['late_p99_ms']:.2f}"]
            )
    head = ["", "model", "capacity/s", "share", "offered/s", "answered/s", "p50 ms", "p90", "p99"]
    head += ["p99.9", "not answered", "generator late p99"]
    failed = "".join(
        f"\n{each['contestant']}, {each['model']}: failed: `{each['failure'].splitlines()[0]}`\n"
        for each in record["servers"]
        if "failure" in each
    )
    return (
        "## Latency against offered load\n\n"
        f"On {sentence(record['machine'])}. {_OPEN_LOOP}\n" + grid(head, rows) + failed
    )


_OPEN_LOOP = """\
Open loop: single images leave at random times (Poisson) over 4 connections, whatever comes back; a
latency counts from when the request was due, so that no waiting is left out. The capacity is
h2load's with 64 in flight. The share that is judged is offered several times; its median counts.
"""


def _overload(record: Record) -> str:
    head = [
        "",
        "capacity/s",
        "offered/s",
        "ceiling/s",
        "answered/s",
        "of capacity",
        "p50 ms",
        "p99",
    ]
    head += ["statuses, second time", "RSS MB", "generator late p99"]
    rows = []
    for model, found in record["models"].items():
        twice = (found["first"], found["second"])
        rows.append(
            [model, f"{found['capacity']:,.0f}", _each(twice, "offered_per_second", ",.0f")]
            + [f"{found['ceiling']:,.0f}", _each(twice, "answered_per_second", ",.0f")]
            + [f"{found['goodput'] / found['capacity']:.2f}"]
            + [_percentile(twice, name) for name in ("p50", "p99")]
            + [", ".join(f"{code} {n:,}" for code, n in twice[1]["statuses"].items())]
            + [", ".join(f"{value:.0f}" for value in found["rss_mb"])]
            + [_each(twice, "late_p99_ms", ".2f")]
        )
    return (
        f"## Overload\n\nOn {sentence(record['machine'])}. Three times the capacity, open loop,"
        f" {record['seconds']:g} s twice; p50 and p99 are those of the answered. A refusal alone"
        f" takes the server {record['refusal_us']:.1f} µs of CPU: the ceiling is what that leaves"
        " room for. RSS is before, after the first time, and after the second.\n\n"
        + grid(head, rows)
    )


def _each(loads: Sequence[Record], field: str, form: str) -> str:
    return ", ".join(format(each[field], form) for each in loads)


def _percentile(loads: Sequence[Record], name: str) -> str:
    return ", ".join(f"{each['latency_ms'].get(name, float('nan')):.1f}" for each in loads)


def _metrics(record: Record) -> str:
    rows = []
    for model, servers in record["models"].items():
        for name, each in servers.items():
            cpu, others = each["cpu_us"], max(each["others_cpu"])
            rate = f"{statistics.median(each['requests_per_second']):,.0f}"
            row = [model, name, len(cpu), f"{statistics.median(cpu):.1f}"]
            row += [f"{min(cpu):.1f} to {max(cpu):.1f}"]
            row += ["" if name == OURS else f"{cost_share(servers, name):.1%}", rate]
            row += ["" if name == OURS else f"{rate_share(servers, name):.1%}", f"{others:.0%}"]
            rows.append(row)
    head = ["model", "", "loads", "CPU µs per request", "of all loads", "saved"]
    head += ["requests/s", "gained", "others"]
    return f"## What knowing costs\n\nOn {sentence(record['machine'])}. {_ABLATED}\n" + grid(
        head, rows
    )


_ABLATED = """\
Single images, 64 in flight, over the lane. The same server with parts of its work left out, which
no option does: without metrics, the lane counts nothing of a request or a batch; without quality,
no prediction is read from the outputs, so that there are no prediction ids and nothing for drift.
They run side by side on one core, are asked in turns, and are started anew in each round; what is
saved, and the share of the other's requests/s that it gained, is the median over the turns. Scrapes
are not in it. More than a few percent of "others", and the figures are not to be trusted.
"""


def _passed_on(record: Record) -> str:
    rows = []
    for call, servers in record["calls"].items():
        for name, each in servers.items():
            cpu, rate = (
                statistics.median(each["cpu_us"]),
                statistics.median(each["calls_per_second"]),
            )
            share = f"{over(servers):.2f}" if name == OURS else ""
            rows.append([call, name, len(each["cpu_us"]), f"{cpu:.1f}", share, f"{rate:,.0f}"])
    head = ["call", "", "loads", "CPU µs per call", "over grpcio's", "calls/s"]
    return (
        f"## What passing a call on costs\n\nOn {sentence(record['machine'])}. {_PASSED_ON}\n"
        + grid(head, rows)
    )


_PASSED_ON = """\
Calls that the lane leaves to grpcio, through it and over grpcio directly, 64 in flight. Both
servers run side by side on one core and are asked in turns; the share is the median over the turns.
"""


def _connections(record: Record) -> str:
    rows = [
        [name]
        + [
            f"{each[field]:,.0f}"
            for field in ("alone_mb", "idle_mb", "rss_mb", "requests_per_second")
        ]
        for name, each in record["servers"].items()
    ]
    idle, busy = f"{record['idle']:,} idle", f"{record['busy']:,} busy"
    head = ["", "RSS MB without", f"with {idle}", f"and {busy}", "requests/s of these"]
    return (
        f"## Connections\n\nlinear alone is loaded, on {sentence(record['machine'])}.\n\n"
        + grid(head, rows)
    )
