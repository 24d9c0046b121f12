"""CountedIds: each id once, by however many processes, wherever one is killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import counter_directory
from serving.counted_ids import WAYS, CountedIds, settled
from serving.counters import Counters, Merge, Record, Series

SERIES = Series(Merge.SUM, "counted")
CAPACITY = 4 * WAYS
SPAWN = multiprocessing.get_context("spawn")


def total(directory: Path) -> float:
    return counter_directory.read(directory).sums[SERIES][0]


def digests(numbers: list[int]) -> list[bytes]:
    return [number.to_bytes(8, "big") for number in numbers]


@given(st.lists(st.lists(st.integers(1, 3000) | st.integers(1, 2**64 - 1), max_size=300)))
def test_it_counts_as_a_set_does_whose_buckets_forget_their_oldest(calls: list[list[int]]) -> None:
    buckets: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(CAPACITY // WAYS)]
    with TemporaryDirectory() as name:
        directory = Path(name)
        record = Counters(directory).record(SERIES)
        table = CountedIds(directory, CAPACITY)
        expected = 0
        for numbers in calls:
            news = []
            for number in numbers:
                bucket = buckets[number % len(buckets)]
                news.append(number not in bucket)
                bucket.setdefault(number)
                if len(bucket) > WAYS:
                    bucket.popitem(last=False)
            expected += sum(news)
            assert table.count([(each, record) for each in digests(numbers)]) == news
        assert record.slots[0] == expected == total(directory)


def test_a_table_keeps_half_of_what_it_has_room_for_whatever_the_ids_are(tmp_path: Path) -> None:
    record = Counters(tmp_path).record(SERIES)
    table = CountedIds(tmp_path, 1 << 16)
    source = random.Random(1)
    ids = [(source.randbytes(8), record) for _ in range(3 << 16)]
    assert all(table.count(ids))
    recent = ids[-(1 << 15) :]
    assert not any(table.count(recent))
    assert (tmp_path / "counted.ids").stat().st_size == 512 + 8 * (1 << 16)


def test_an_id_is_not_found_across_two_others(tmp_path: Path) -> None:
    record = Counters(tmp_path).record(SERIES)
    table = CountedIds(tmp_path, WAYS)
    across = b"\2\2\2\2\1\1\1\1"
    ids = [b"\1" * 8, b"\2" * 8, across, across]
    assert table.count([(each, record) for each in ids]) == [True, True, True, False]


def hammer(directory: Path, worker: int, ids: list[bytes], begin: Event, again: bool) -> None:
    """Count all the ids, in an order of one's own, a few at a time; again and again if so."""
    record = Counters(directory, worker).record(SERIES)
    table = CountedIds(directory, 1 << 16)
    random.Random(worker).shuffle(ids)
    begin.wait()
    while True:
        for start in range(0, len(ids), 7):
            table.count([(each, record) for each in ids[start : start + 7]])
        if not again:
            break


def test_each_id_is_counted_once_by_all_processes_of_which_some_are_killed(tmp_path: Path) -> None:
    ids = digests(list(range(1, 20_001)))
    begin = SPAWN.Event()
    processes = [
        SPAWN.Process(target=hammer, args=(tmp_path, worker, ids, begin, worker < 2))
        for worker in range(4)
    ]
    for process in processes:
        process.start()
    record = Counters(tmp_path, 4).record(SERIES)
    table = CountedIds(tmp_path, 1 << 16)
    begin.set()
    for number, killed in enumerate(processes[:2]):
        while total(tmp_path) < 2000 * (1 + number):
            pass
        killed.kill()
        killed.join()
        with settled(tmp_path):
            counter_directory.fold(tmp_path)
    for process in processes[2:]:
        process.join()
        assert process.exitcode == 0
    assert [process.exitcode for process in processes[:2]] == [-signal.SIGKILL] * 2
    assert total(tmp_path) == 20_000
    assert not any(table.count([(each, record) for each in ids]))


def test_each_id_is_counted_once_by_all_threads_of_a_process(tmp_path: Path) -> None:
    record = Counters(tmp_path).record(SERIES)
    table = CountedIds(tmp_path, 1 << 16)
    ids = [(each, record) for each in digests(list(range(1, 5001)))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they come between each other's steps
    try:
        with ThreadPoolExecutor(4) as pool:
            counted = sum(sum(news) for news in pool.map(table.count, [ids] * 4))
    finally:
        sys.setswitchinterval(interval)
    assert counted == record.slots[0] == 5000


class Deadly:
    """Slots at which the process dies, right before or right after the count."""

    def __init__(self, record: Record, stored: bool) -> None:
        self._slots = record.slots
        self._stored = stored

    def __getitem__(self, index: int) -> float:
        return self._slots[index]

    def __setitem__(self, index: int, value: float) -> None:
        if self._stored:
            self._slots[index] = value
        os.kill(os.getpid(), signal.SIGKILL)


def die(directory: Path, stored: bool) -> None:
    record = Counters(directory, 1).record(SERIES)
    slots = Deadly(record, stored)
    deadly = Record(slots, record.path, record.offset)  # type: ignore[arg-type]
    ids = digests([1, 2])
    table = CountedIds(directory, CAPACITY)
    table.count([(ids[0], record)])
    table.count([(ids[1], deadly)])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_a_process_that_dies_between_count_and_mark_loses_and_doubles_nothing(
    tmp_path: Path, stored: bool, folded: bool
) -> None:
    process = SPAWN.Process(target=die, args=(tmp_path, stored))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if folded:
        with settled(tmp_path):
            counter_directory.fold(tmp_path)
    record = Counters(tmp_path, 2).record(SERIES)
    again = [(each, record) for each in digests([1, 2, 3])]
    assert CountedIds(tmp_path, CAPACITY).count(again) == [False, not stored, True]
    assert total(tmp_path) == 3


def test_a_directory_where_nobody_counted_is_settled(tmp_path: Path) -> None:
    with settled(tmp_path):
        assert list(tmp_path.iterdir()) == []
