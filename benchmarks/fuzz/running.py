"""One target run: so many cases, each known by the seed and its number, and what came of them.

Owns what must hold whatever is fuzzed: nothing is logged as an error, nothing hangs, memory does
not grow. The rest is each target's to judge.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

# Cases that are judged together: some of them run in one batch.
WINDOW = 32
# Seconds for a window; then the process ends, with where each thread is.
HANG = 120.0
# Bytes that the process may have grown by since its warm-up, which is the first fifth.
GROWTH = 32 << 20
WARM_UP = 0.2
FOUND = Path("build/fuzz")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Wrong(Exception):
    """Something came of a case that must not; the message says what."""

    def __init__(self, why: str, *cases: bytes) -> None:
        super().__init__(why)
        self.cases = cases


class Target(Protocol):
    """What is fuzzed, while it is open."""

    def case(self, draw: Random) -> bytes:
        """One more case."""

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """What came of each, by a short name; Wrong where that must not be."""


Opened = Callable[[], AbstractContextManager[Target]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to; memory in bytes, resident, after the warm-up and at the end."""

    target: str
    seed: int
    cases: int
    seconds: float
    outcomes: dict[str, int]
    memory: tuple[int, int]
    wrong: str = ""


class Listening(logging.Handler):
    """What is logged as an error, or as worse; but not that a version is refused, where the words
    say why."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its text and traceback."""
        if record.name == "serving.lifecycle" and not record.exc_info:
            return
        self.heard.append(logging.Formatter().format(record)[-3000:])


def run(name: str, opened: Opened, seed: int, count: int, first: int = 0) -> Report:
    """So many cases, from the first number on; ends at the first that is wrong, which is kept."""
    listening = Listening()
    logging.getLogger().addHandler(listening)
    outcomes: Counter[str] = Counter()
    memory, begun, done, wrong = [0, 0], time.monotonic(), 0, ""
    FOUND.mkdir(parents=True, exist_ok=True)
    try:
        with opened() as target:
            while done < count and not wrong:
                numbers = range(first + done, first + min(done + WINDOW, count))
                # Where a process ends by itself, this says with which cases.
                (FOUND / f"{name}.now").write_text(f"seed {seed}, cases {numbers}\n")
                cases = [target.case(_random(seed, number)) for number in numbers]
                faulthandler.dump_traceback_later(HANG, exit=True)
                wrong = _judged(target, cases, outcomes, listening, f"{name}-{seed}-{numbers[0]}")
                done += len(cases)
                if not memory[0] and done >= WARM_UP * count:
                    memory[0] = resident()
            memory[1] = resident()
    finally:
        faulthandler.cancel_dump_traceback_later()
        logging.getLogger().removeHandler(listening)
    if not wrong and memory[1] - memory[0] > GROWTH:
        wrong = f"memory grew from {memory[0]} to {memory[1]} bytes"
    return Report(
        name, seed, done, time.monotonic() - begun, dict(outcomes), (memory[0], memory[1]), wrong
    )


def _random(seed: int, number: int) -> Random:
    return Random(seed << 40 | number)  # nosec B311


def _judged(
    target: Target,
    cases: Sequence[bytes],
    outcomes: Counter[str],
    listening: Listening,
    name: str,
) -> str:
    """What is wrong; the cases that it may be are kept then."""
    suspects, wrong = cases, ""
    try:
        outcomes.update(target.judge(cases))
    except Wrong as found:
        suspects, wrong = found.cases or cases, str(found)
    except Exception:
        wrong = traceback.format_exc()
    if listening.heard:
        wrong += "\nlogged: " + "\n".join(listening.heard)
    if wrong:
        for number, case in enumerate(suspects):
            (FOUND / f"{name}-{number}").write_bytes(case)
    return wrong


def resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
