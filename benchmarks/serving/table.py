"""Markdown of what a run wrote. Nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.machine import sentence
from benchmarks.serving.measure import ROWS
from benchmarks.serving.targets import (
    ALONE,
    GRPCIO,
    OURS,
    Figure,
    Record,
    Verdict,
    connections_verdict,
    cost_share,
    load_verdicts,
    metrics_verdict,
    over,
    overload_verdict,
    passed_on_verdicts,
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
    if judged := _judged(record):
        parts.append(_targets(judged))
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
    return all(verdict.met for verdict in _judged(record))


def _judged(record: Record) -> list[Verdict]:
    judged = verdicts(record["compared"]) if "compared" in record else []
    if "load" in record:
        judged += load_verdicts(record["load"])
    if "overload" in record:
        judged.append(overload_verdict(record["overload"]))
    if "metrics" in record:
        judged.append(metrics_verdict(record["metrics"]))
    if "passed_on" in record:
        judged += passed_on_verdicts(record["passed_on"])
    if "connections" in record and (verdict := connections_verdict(record["connections"])):
        judged.append(verdict)
    return judged


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _targets(judged: list[Verdict]) -> str:
    rows = [
        (
            each.text,
            f"{'≤' if each.at_most else '≥'} {each.bound:g}",
            f"{each.value:.2f}",
            "met" if each.met else "MISSED",
        )
        for each in judged
    ]
    return grid(("target", "asked for", "measured", ""), rows)


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
    cells += [median(each, ".0f") for each in ("cpu_us", "rss_mb", "peak_rss_mb")]
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
    return (
        "## Latency against offered load\n\n"
        f"On {sentence(record['machine'])}. {_OPEN_LOOP}\n" + grid(head, rows)
    )


_OPEN_LOOP = """\
Open loop: single images leave at random times (Poisson) over 4 connections, whatever comes back; a
latency counts from when the request was due. The capacity is h2load's with 64 in flight.
"""


def _overload(record: Record) -> str:
    first, second = record["first"], record["second"]
    rss = ", ".join(f"{value:.0f}" for value in record["rss_mb"])
    rows = [
        ("capacity, answers/s", f"{record['capacity']:,.0f}"),
        ("a refusal alone, µs", f"{record['refusal_us']:.0f}"),
        ("offered, requests/s", f"{first['offered_per_second']:,.0f}"),
        ("ceiling, answers/s", f"{record['ceiling']:,.0f}"),
        (
            "answered per second, first time and second",
            _both(record, "answered_per_second", ",.0f"),
        ),
        ("share of the capacity", f"{record['goodput'] / record['capacity']:.2f}"),
        ("p50 of the answered, ms", _percentile(first, second, "p50")),
        ("p99 of the answered, ms", _percentile(first, second, "p99")),
        ("statuses, second time", ", ".join(f"{k} {v:,}" for k, v in second["statuses"].items())),
        ("RSS MB before, after the first time, after the second", rss),
    ]
    return (
        f"## Overload\n\nresnet18 at three times its capacity, open loop, {record['seconds']:g} s"
        f" twice, on {sentence(record['machine'])}.\n\n" + grid(("", ""), rows)
    )


def _both(record: Record, field: str, form: str) -> str:
    return ", ".join(format(record[each][field], form) for each in ("first", "second"))


def _percentile(first: Record, second: Record, name: str) -> str:
    return ", ".join(
        f"{each['latency_ms'].get(name, float('nan')):.1f}" for each in (first, second)
    )


def _metrics(record: Record) -> str:
    rows = []
    for name, each in record["servers"].items():
        cpu = each["cpu_us"]
        saved = "" if name == GRPCIO else f"{cost_share(record['servers'], name):.1%}"
        spread = f"{min(cpu):.1f} to {max(cpu):.1f}"
        rate, others = statistics.median(each["requests_per_second"]), max(each["others_cpu"])
        median = f"{statistics.median(cpu):.1f}"
        rows.append([name, len(cpu), median, spread, saved, f"{rate:,.0f}", f"{others:.0%}"])
    head = ["", "loads", "CPU µs per request", "of all loads", "saved", "requests/s", "others"]
    return f"## What metrics cost\n\nOn {sentence(record['machine'])}. {_ABLATED}\n" + grid(
        head, rows
    )


_ABLATED = """\
linear, single images, 64 in flight. The same server with parts of its work left out, which no
option does: without metrics, nothing of a request or a batch is counted, nor made only to be
counted; without quality, no prediction is read from the outputs, and no prediction id is made.
They run side by side on one core, are asked in turns, and are started anew in each round; what is
saved is the median over the turns. Scrapes are not in it. More than a few percent of "others", and
the figures are not to be trusted.
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
