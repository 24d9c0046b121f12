"""The layout of a counter file, as another program would read and write it; growth; liveness."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from serving.counter_directory import read
from serving.counters import Counters, Merge, Series, read_file
from serving.processes import Process, alive, current_process

GROWING = """
import sys
from pathlib import Path
from serving.counters import Counters, Merge, Series
counters = Counters(Path(sys.argv[1]), chunk_bytes=4096)
for number in range(1500):
    slots = counters.record(Series(Merge.SUM, "series", (str(number),)), 3).slots
    slots[0] = slots[1] = slots[2] = number
print("grown", flush=True)
sys.stdin.read()
"""


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process of its own; it ends when its standard input does."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def counted(directory: Path, name: str) -> list[float]:
    """The merged slots of the series of that name without labels."""
    return next(slots for series, slots in read(directory).sums.items() if series.name == name)


def test_the_file_is_laid_out_as_documented(tmp_path: Path) -> None:
    counters = Counters(tmp_path, worker=3)
    record = counters.record(Series(Merge.SUM, "größe", ("a", "b")), 2)
    record.slots[0], record.slots[1] = 1.5, 2.5
    data = record.path.read_bytes()
    me = current_process()
    key = '["sum", "größe", ["a", "b"]]'.encode().ljust(32)
    used = 64 + 8 + len(key) + 16
    header = (b"digitsct", 1, 3, me.pid, me.start, used, 0, 0)
    assert struct.unpack_from("=8sQqQQQQQ", data) == header
    assert struct.unpack_from("=II", data, 64) == (len(key), 2)
    assert data[72 : 72 + len(key)] == key
    assert record.offset == 72 + len(key)
    assert struct.unpack_from("=2d", data, record.offset) == (1.5, 2.5)


def test_another_writer_in_the_process_adds_to_a_record_of_its_own(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    series = Series(Merge.SUM, "n")
    counters.record(series).slots[0] = 3
    by_offset, by_address = counters.private_record(series), counters.private_record(series)
    with by_offset.path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        struct.pack_into("=d", mapped, by_offset.offset, 4.0)
    ctypes.c_double.from_buffer(by_address.slots).value = 5.0
    assert (by_offset.slots[0], by_address.slots[0]) == (4, 5)
    assert counted(tmp_path, "n") == [12.0]


def test_slots_stay_good_while_files_are_added(tmp_path: Path) -> None:
    counters = Counters(tmp_path, chunk_bytes=256)  # room for four
    records = [counters.record(Series(Merge.SUM, f"n{i}"), 2) for i in range(20)]
    for number, record in enumerate(records):
        record.slots[1] = number
    huge = counters.record(Series(Merge.SUM, "huge"), 1000)
    huge.slots[999] = 5
    assert len({record.path for record in records}) == 5
    assert [counted(tmp_path, f"n{i}") for i in range(20)] == [[0.0, float(i)] for i in range(20)]
    assert counted(tmp_path, "huge")[-1] == 5
    assert counters.record(Series(Merge.SUM, "n7"), 2) is records[7]


def test_a_reader_meets_only_whole_records_while_a_file_grows(tmp_path: Path) -> None:
    with python(GROWING, str(tmp_path)) as process:
        done = threading.Event()

        def announce() -> None:
            assert process.stdout is not None
            process.stdout.readline()
            done.set()

        announcing = threading.Thread(target=announce)
        announcing.start()
        sizes = [0]
        while not done.is_set():
            sums = read(tmp_path).sums
            sizes.append(len(sums))
            for series, slots in sums.items():
                assert set(slots) <= {0.0, float(series.labels[0])}
        announcing.join()
        final = read(tmp_path).sums
        process.communicate()
    assert sizes == sorted(sizes)
    assert sorted(slots[0] for slots in final.values()) == [float(i) for i in range(1500)]


def test_threads_that_take_the_lock_lose_no_count(tmp_path: Path) -> None:
    counters = Counters(tmp_path)

    def count() -> None:
        for number in range(2000):
            slots = counters.record(Series(Merge.SUM, f"n{number % 7}")).slots
            with counters.lock:
                slots[0] += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(slots[0] for slots in read(tmp_path).sums.values()) == 8000


def test_a_reused_pid_is_not_the_process_that_wrote(tmp_path: Path) -> None:
    me = current_process()
    assert alive(me)
    former = Process(me.pid, me.start - 1)
    assert not alive(former)
    counters = Counters(tmp_path, process=former)
    counters.record(Series(Merge.SUM, "n")).slots[0] = 2
    counters.record(Series(Merge.LIVE_SUM, "now")).slots[0] = 2
    snapshot = read(tmp_path)
    assert snapshot.sums == {Series(Merge.SUM, "n"): [2.0]}
    assert snapshot.workers == frozenset()


def test_a_killed_process_is_dead_before_it_is_waited_for(tmp_path: Path) -> None:
    with python(GROWING, str(tmp_path)) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (process,) = read(tmp_path).workers
        assert process.pid == child.pid
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert not alive(process)
    assert not alive(process)


def test_without_proc_the_pid_decides(tmp_path: Path) -> None:
    with python("") as child:
        child.communicate()
    nowhere = tmp_path / "proc"
    assert alive(Process(os.getpid(), 0), nowhere)
    assert not alive(Process(child.pid, 0), nowhere)


def test_what_is_no_counter_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.counters"
    path.write_bytes(bytes(64))
    with pytest.raises(ValueError, match=r"other\.counters: not a counter file of layout 1"):
        read_file(path)


def test_when_no_file_can_be_added_counting_goes_on_unseen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters(tmp_path)
    shutil.rmtree(tmp_path)
    big = counters.record(Series(Merge.SUM, "big"), 100_000).slots
    big[0] += 2
    assert big[0] == 2
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("new metrics are not shown: ")
