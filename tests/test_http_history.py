"""History: the last minutes of each version from real counter files, by a clock of the tests."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import PATIENCE, publish_times, running_server, times_request, until

from serving import counter_directory
from serving.config import ServerConfig
from serving.counter_directory import Sums
from serving.counters import SUFFIX
from serving.execution import Execution
from serving.families import Exported
from serving.http.app import application
from serving.http.history import AGES, INTERVAL, Figures, History, quantile
from serving.http.server import HttpServer
from serving.http.services import Services
from serving.metrics import Metrics

KEY = ("m", "1")


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A history of one version's counters, and the means to move both on."""

    def __init__(self, directory: Path) -> None:
        self.metrics = Metrics(directory, "1")
        self.model = self.metrics.model("m", 1)
        self.clock = Clock()
        self.history = History(self.metrics.sums, self.clock)
        self.history.look()

    def ran(self, rows: int, *seconds: float) -> None:
        """One batch, of one request for each of the seconds."""
        each = [rows // len(seconds)] * len(seconds)
        queue = [0.0] * len(seconds)
        self.model.executed(Execution(rows, each, queue, list(seconds), 0.0, 0.0, 0.0))

    def after(self, seconds: float) -> list[Figures | None]:
        """Look so much later; what is told of the version."""
        self.clock.now += seconds
        self.history.look()
        return self.seen()

    def seen(self) -> list[Figures | None]:
        return self.history.seen([KEY])[KEY]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_an_interval_tells_what_was_counted_in_it(watched: Watched) -> None:
    watched.ran(6, 0.15, 0.15)
    watched.ran(4, 0.15, 0.15)
    *before, latest = watched.after(5.0)
    assert set(before) == {None}
    # Four requests of 0.15 s, in the bucket from 0.1 to 0.2.
    assert latest
    assert (latest.rows_per_second, latest.batch_size) == (2.0, 5.0)
    assert (latest.latency_p50, latest.latency_p99) == pytest.approx((0.15, 0.199))


def test_what_was_counted_before_the_first_look_is_in_no_interval(tmp_path: Path) -> None:
    before = Watched(tmp_path)
    before.ran(100, 0.15)
    history = History(before.metrics.sums, before.clock)
    history.look()
    before.clock.now += 5
    history.look()
    assert history.seen([KEY])[KEY][-1] == Figures(0.0, None, None, None)


def test_a_rate_is_of_the_seconds_that_went_by(watched: Watched) -> None:
    watched.ran(10, 0.15)
    latest = watched.after(20.0)[-1]
    assert latest
    assert latest.rows_per_second == 0.5


def test_each_interval_is_told_by_its_age_and_forgotten_after_five_minutes(
    watched: Watched,
) -> None:
    watched.ran(5, 0.15)
    watched.after(5.0)
    for _ in range(len(AGES) - 2):
        watched.after(5.0)
    rates = [each and each.rows_per_second for each in watched.seen()]
    assert rates == [None, 1.0, *[0.0] * (len(AGES) - 2)]
    assert AGES[1] == -295
    watched.after(5.0)
    assert watched.after(5.0)[0] == Figures()


def test_looks_that_did_not_come_leave_gaps(watched: Watched) -> None:
    watched.ran(5, 0.15)
    watched.after(5.0)
    seen = watched.after(15.2)  # two were missed
    assert [each is None for each in seen[-5:]] == [True, False, True, True, False]
    watched.clock.now += 10.3
    late = watched.seen()
    assert [each is None for each in late[-4:]] == [True, False, True, True]
    watched.clock.now += 300
    assert set(watched.seen()) == {None}


def test_a_version_that_did_nothing_is_told_where_it_is_asked_for_only(watched: Watched) -> None:
    watched.after(5.0)
    assert watched.history.seen([]) == {}
    watched.ran(1, 0.15)
    watched.after(5.0)
    assert set(watched.history.seen([])) == {KEY}
    assert set(watched.history.seen([("idle", "2")])) == {KEY, ("idle", "2")}


def test_all_workers_count_and_one_that_begins_later_counts_from_nothing(
    watched: Watched, tmp_path: Path
) -> None:
    watched.ran(5, 0.15)
    watched.after(5.0)
    second = Metrics(tmp_path, "1", worker=1).model("m", 1)
    second.executed(Execution(10, [10], [0.0], [0.15], 0.0, 0.0, 0.0))
    watched.ran(5, 0.15)
    latest = watched.after(5.0)[-1]
    assert latest
    assert (latest.rows_per_second, latest.batch_size) == (3.0, 7.5)


def test_counters_that_begin_again_give_no_negative_rate() -> None:
    def sums(requests: float) -> Sums:
        rows, seconds = Exported.request_rows, Exported.request_seconds
        return {
            rows.series(*KEY): [requests, *[0.0] * (rows.slots - 2), requests],
            seconds.series(*KEY): [requests, *[0.0] * (seconds.slots - 2), requests * 1e-5],
        }

    clock, counts = Clock(), iter((100.0, 40.0, 50.0))
    history = History(lambda: sums(next(counts)), clock)
    history.look()
    for _ in range(2):
        clock.now += 5
        history.look()
    rates = [each and each.rows_per_second for each in history.seen([KEY])[KEY]]
    assert rates[-2:] == [0.0, 2.0]


def test_a_quantile_lies_where_the_share_of_its_bucket_does() -> None:
    bounds = (0.1, 0.2, 0.5)
    assert quantile(0.5, bounds, [10, 0, 0, 0]) == pytest.approx(0.05)
    assert quantile(0.5, bounds, [0, 10, 0, 0]) == pytest.approx(0.15)
    assert quantile(0.5, bounds, [5, 0, 5, 0]) == pytest.approx(0.1)
    assert quantile(0.99, bounds, [98, 0, 2, 0]) == pytest.approx(0.35)
    assert quantile(0.5, bounds, [1, 0, 0, 9]) == 0.5
    assert quantile(0.5, bounds, [0, 0, 0, 0]) is None


def test_a_quantile_is_within_a_bucket_of_that_of_the_values() -> None:
    values = np.random.default_rng(7).lognormal(-4, 1, 10_000)
    bounds = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5)
    counts = np.histogram(values, [0, *bounds, np.inf])[0]
    for share in (0.5, 0.99):
        exact = float(np.quantile(values, share))
        bucket = int(np.searchsorted(bounds, exact))
        found = quantile(share, bounds, counts.tolist())
        assert found
        assert bounds[bucket - 1] <= found <= bounds[bucket]


def test_a_history_is_kept_until_its_block_ends(tmp_path: Path) -> None:
    looks: list[float] = []
    first = asyncio.Event()

    async def keep() -> float:
        loop = asyncio.get_running_loop()

        def sums() -> Sums:
            looks.append(time.monotonic())
            loop.call_soon_threadsafe(first.set)
            return counter_directory.read(tmp_path).sums

        async with History(sums).kept():
            await first.wait()
            leaving = time.monotonic()
        assert len(asyncio.all_tasks()) == 1
        return time.monotonic() - leaving

    assert asyncio.run(keep()) < INTERVAL
    assert len(looks) == 1


class Heard(logging.Handler):
    """Tells the event loop that it runs on of the first message."""

    def __init__(self) -> None:
        super().__init__()
        self.first = asyncio.Event()
        self.message = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.message = self.message or record.getMessage()
        self.first.set()


def test_counters_that_cannot_be_read_are_logged_and_end_nothing(tmp_path: Path) -> None:
    (tmp_path / f"bad{SUFFIX}").write_bytes(bytes(64))

    async def keep() -> str:
        heard = Heard()
        logging.getLogger("serving.http").addHandler(heard)
        try:
            async with History(lambda: counter_directory.read(tmp_path).sums).kept():
                await heard.first.wait()
                (keeping,) = asyncio.all_tasks() - {asyncio.current_task()}
                assert not keeping.done()
        finally:
            logging.getLogger("serving.http").removeHandler(heard)
        return heard.message

    message = asyncio.run(keep())
    assert message.startswith("what the models did cannot be read: ")
    assert "not a counter file" in message


@contextmanager
def often(services: Services) -> Iterator[str]:
    """The address of HTTP for a server's parts, with a history that looks more often."""
    services = dataclasses.replace(services, history=History(services.history.sums, interval=0.2))
    server = HttpServer(ServerConfig(http_port=0), application(services))
    server.start()
    try:
        yield server.url
    finally:
        server.stop(0.0)


def test_a_server_keeps_one_though_nobody_asks(tmp_path: Path, transport: str) -> None:
    publish_times(tmp_path)
    with (
        running_server(tmp_path, transport=transport) as running,
        often(running.server.inference.services) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as client,
    ):

        def told() -> list[float | None]:
            running.stub.ModelInfer(times_request(1.0, 2.0))
            history = client.get("/v1/overview").json()["history"]
            assert history["ages"] == list(AGES)
            assert history["interval_seconds"] == INTERVAL
            (model,) = history["models"]
            assert (model["model"], model["version"]) == ("times", "1")
            rates: list[float | None] = model["rows_per_second"]
            sizes, p50, p99 = (model[n][-1] for n in ("batch_size", "latency_p50", "latency_p99"))
            assert (sizes, bool(p50), bool(p99)) in ((2.0, True, True), (None, False, False))
            return rates

        until(lambda: any(told()))
