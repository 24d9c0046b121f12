"""`watch`: what each model does, from the differences of the server's sums."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from rich.console import Console
from rich.live import Live
from rich.table import Table

from serving.client import Client
from serving.client_output import Cell, JsonLines, TabbedLines, add_row, empty_table
from serving.client_types import ModelQuality, ModelStatistics, RequestFailed

COLUMNS = (
    *("model", "version", "requests/s", "rows/s", "rows/batch"),
    *("mean ms", "queue ms", "failures/s", "accuracy", "labels"),
)

_Key = tuple[str, str]  # model, version


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server had counted at one time."""

    time: float
    statistics: dict[_Key, ModelStatistics]
    quality: dict[_Key, ModelQuality]


def watch(client: Client, interval: float, count: int | None, as_json: bool, timeout: float) -> int:
    """Until interrupted, or `count` times: rates over the last interval, in seconds."""
    rounds = _rounds(client, interval, count, timeout)
    if sys.stdout.isatty() and not as_json:
        with Live(console=Console(), auto_refresh=False) as live:
            for rows in rounds:
                live.update(_drawn(rows), refresh=True)
        return 0
    output = JsonLines(COLUMNS) if as_json else TabbedLines()
    if not as_json:
        output.row(COLUMNS)
    for rows in rounds:
        for each in rows:
            output.row(each if as_json else _shown(each))
    return 0


def _rounds(
    client: Client, interval: float, count: int | None, timeout: float
) -> Iterator[list[tuple[Cell, ...]]]:
    before, told = _sample(client, timeout), 0
    while count is None or told < count:
        time.sleep(max(0.0, before.time + interval - time.monotonic()))
        now = _sample(client, timeout)
        yield [row(before, now, key) for key in sorted(now.statistics)]
        before, told = now, told + 1


def _sample(client: Client, timeout: float) -> Sample:
    statistics = client.statistics(timeout=timeout)
    try:
        known = client.quality(timeout=timeout)
    except RequestFailed as error:
        if error.code is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        known = []  # another V2 server than ours
    return Sample(
        time.monotonic(),
        {(each.model, each.version): each for each in statistics},
        {(each.model, each.version): each for each in known},
    )


def row(before: Sample, now: Sample, key: _Key) -> tuple[Cell, ...]:
    """One version's; None for what there is none of, such as the latency of no requests."""
    seconds = now.time - before.time
    last = _since(before.statistics.get(key), now.statistics[key])
    quality = now.quality.get(key)
    return (
        *key,
        round(last.requests / seconds, 1),
        round(last.rows / seconds, 1),
        _mean(last.rows, last.executions),
        _mean(last.seconds * 1000, last.requests),
        _mean(last.queue_seconds * 1000, last.requests),
        round(last.failures / seconds, 1),
        quality.accuracy.value if quality and quality.accuracy else None,
        quality.feedback_count if quality else None,
    )


def _since(before: ModelStatistics | None, now: ModelStatistics) -> ModelStatistics:
    """The difference; of a server that began anew, all that it has counted."""
    if before is None or now.requests < before.requests or now.failures < before.failures:
        return now
    return ModelStatistics(
        now.model,
        now.version,
        now.requests - before.requests,
        now.failures - before.failures,
        now.rows - before.rows,
        now.executions - before.executions,
        now.seconds - before.seconds,
        now.queue_seconds - before.queue_seconds,
    )


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 2) if count else None


def _drawn(rows: list[tuple[Cell, ...]]) -> Table:
    table = empty_table(COLUMNS)
    for each in rows:
        add_row(table, _shown(each))
    return table


def _shown(row: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """With as many digits as mean something."""
    accuracy = COLUMNS.index("accuracy")
    return tuple(
        f"{cell:.2f}" if isinstance(cell, float) and index != accuracy else cell
        for index, cell in enumerate(row)
    )
