"""Several processes' files as one: sums that outlive their process, folding, and cleaning up."""

from __future__ import annotations

import fcntl
import subprocess
import threading
from math import isnan, nan
from pathlib import Path

from test_counters import counted, python

from serving.counter_directory import CounterDirectory, fold, read
from serving.counters import Counters, Merge, Series, read_file
from serving.processes import Process, current_process

COUNTING = """
import sys
from pathlib import Path
from serving.counters import Counters, Merge, Series
counters = Counters(Path(sys.argv[1]), int(sys.argv[2]))
total = counters.record(Series(Merge.SUM, "total")).slots
now = counters.record(Series(Merge.LIVE_SUM, "now")).slots
now[0] = 1
for line in sys.stdin:
    total[0] += int(line)
    print("counted", flush=True)
"""
OWNING = """
import sys
from pathlib import Path
from serving.counter_directory import CounterDirectory
directory = CounterDirectory(Path(sys.argv[1]))
print(directory.path, flush=True)
sys.stdin.read()
"""
READING = """
import sys
from pathlib import Path
from serving.counter_directory import read
directory = Path(sys.argv[1])
seen = []
print("reading", flush=True)
while True:
    stop = (directory / "stop").exists()
    seen += [slots[0] for slots in read(directory).sums.values()]
    if stop:
        break
print(seen == sorted(seen), len(seen), seen[-1])
"""
TOTAL = Series(Merge.SUM, "total")


def tell(process: subprocess.Popen[str], amount: int) -> None:
    """Let a counting process count, and wait until it has."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{amount}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "counted\n"


def dead_file(directory: Path, amount: float, worker: int = 0) -> Path:
    """What a process that is no more has counted."""
    me = current_process()
    record = Counters(directory, worker, Process(me.pid, me.start - 1), 4096).record(TOTAL)
    record.slots[0] = amount
    return record.path


def test_nan_is_no_value_and_the_least_of_none_shows_no_series(tmp_path: Path) -> None:
    me = current_process()
    one, two = (Counters(tmp_path, worker, me, 4096) for worker in (0, 1))
    for merge in (Merge.LIVE_LEAST, Merge.LIVE_MAX):
        for name, *values in (("both", 0.5, 0.25), ("one", nan, 0.5), ("other", 0.5, nan)):
            for counters, value in zip((one, two), values, strict=True):
                counters.record(Series(merge, name), first=value)
        one.record(Series(merge, "none"), first=nan)
    sums = read(tmp_path).sums
    found = {name: sums.get(Series(Merge.LIVE_LEAST, name)) for name in ("both", "one", "other")}
    assert found == {"both": [0.25], "one": [0.5], "other": [0.5]}
    found = {name: sums.get(Series(Merge.LIVE_MAX, name)) for name in ("both", "one", "other")}
    assert found == {"both": [0.5], "one": [0.5], "other": [0.5]}
    assert Series(Merge.LIVE_LEAST, "none") not in sums
    assert isnan(sums[Series(Merge.LIVE_MAX, "none")][0])


def test_the_counts_of_a_killed_process_stay_and_its_gauges_go(tmp_path: Path) -> None:
    directory = str(tmp_path)
    with python(COUNTING, directory, "0") as one, python(COUNTING, directory, "1") as two:
        tell(one, 3)
        tell(two, 4)
        assert (counted(tmp_path, "total"), counted(tmp_path, "now")) == ([7.0], [2.0])
        assert len(read(tmp_path).workers) == 2
        two.kill()
        two.wait()
        assert (counted(tmp_path, "total"), counted(tmp_path, "now")) == ([7.0], [1.0])
        fold(tmp_path)
        assert (counted(tmp_path, "total"), counted(tmp_path, "now")) == ([7.0], [1.0])
        with python(COUNTING, directory, "1") as again:
            tell(again, 5)
            assert (counted(tmp_path, "total"), counted(tmp_path, "now")) == ([12.0], [2.0])
            assert {process.pid for process in read(tmp_path).workers} == {one.pid, again.pid}
            again.communicate()
        one.communicate()


def test_files_do_not_pile_up_over_many_restarts(tmp_path: Path) -> None:
    Counters(tmp_path).record(TOTAL).slots[0] = 1
    for _ in range(200):
        dead_file(tmp_path, 1)
        fold(tmp_path)
    assert counted(tmp_path, "total") == [201.0]
    assert len(list(tmp_path.glob("*.counters"))) == 2


def test_the_latest_of_all_survives_its_process(tmp_path: Path) -> None:
    me = current_process()
    latest = Series(Merge.MAX, "latest")
    gone = Counters(tmp_path, process=Process(me.pid, me.start - 1))
    gone.record(latest).slots[0] = 9
    fold(tmp_path)
    Counters(tmp_path).record(latest).slots[0] = 4
    assert counted(tmp_path, "latest") == [9.0]


def test_a_fold_that_was_cut_off_counts_nothing_twice(tmp_path: Path) -> None:
    file = dead_file(tmp_path, 5)
    content = file.read_bytes()
    fold(tmp_path)
    file.write_bytes(content)  # as if the folding process had died before it removed the file
    assert counted(tmp_path, "total") == [5.0]
    other = dead_file(tmp_path, 2)
    assert counted(tmp_path, "total") == [7.0]
    fold(tmp_path)
    assert counted(tmp_path, "total") == [7.0]
    assert not file.exists()
    assert not other.exists()


def test_only_one_process_folds(tmp_path: Path) -> None:
    file = dead_file(tmp_path, 5)
    with (tmp_path / "fold.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fold(tmp_path)
        assert file.exists()
    fold(tmp_path)
    assert not file.exists()
    assert read_file(tmp_path / "retired.counters").folds == 1


def test_readers_lose_nothing_and_count_nothing_twice_while_files_are_folded(
    tmp_path: Path,
) -> None:
    ended = 0
    seen: list[tuple[float, float, float]] = []
    done = threading.Event()
    dead_file(tmp_path, 1)

    def reading() -> None:
        while not done.is_set():
            least = ended + 1
            (value,) = read(tmp_path).sums[TOTAL]
            seen.append((least, value, ended + 2))

    thread = threading.Thread(target=reading)
    with python(READING, str(tmp_path)) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "reading\n"
        thread.start()
        while ended < 300 or len(seen) < 100:
            dead_file(tmp_path, 1)
            ended += 1
            fold(tmp_path)
        done.set()
        thread.join()
        (tmp_path / "stop").touch()
        in_order, reads, last = other.communicate()[0].split()
    assert [triple for triple in seen if not triple[0] <= triple[1] <= triple[2]] == []
    assert (in_order, float(last)) == ("True", ended + 1)
    assert int(reads) >= 10


def test_a_directory_goes_with_its_server_or_when_the_next_one_starts(tmp_path: Path) -> None:
    with python(OWNING, str(tmp_path)) as killed, python(OWNING, str(tmp_path)) as living:
        assert killed.stdout is not None
        assert living.stdout is not None
        left, used = Path(killed.stdout.readline().strip()), living.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert left.exists()
        own = CounterDirectory(tmp_path)
        assert {str(path) for path in tmp_path.iterdir()} == {used, str(own.path)}
        own.close()
        living.communicate()
    assert list(tmp_path.iterdir()) == []
