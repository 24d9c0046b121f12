"""Ledger: every request that was sent, and what became of it; which failures were declared.

A fault declares in advance which callers may fail meanwhile, and how. Whatever else is not a right
answer is a violation.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RIGHT = "right"
WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Entry:
    """One request; times are time.monotonic."""

    caller: str
    sent: float
    ended: float
    outcome: str  # RIGHT, WRONG, or the name of a status
    details: str = ""


@dataclass(slots=True)
class Fault:
    """What was done to the server, and who may fail from `began` to `ended`, and how."""

    name: str
    excuses: dict[str, frozenset[str]]  # caller → names of statuses
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    note: str = ""

    def excuses_entry(self, entry: Entry) -> bool:
        """Whether the request was under way meanwhile, and might fail so."""
        under_way = entry.sent <= self.ended and entry.ended >= self.began
        return under_way and entry.outcome in self.excuses.get(entry.caller, frozenset())


class Ledger:
    """Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, tuple[str, float]] = {}
        self._number = 0
        self.entries: list[Entry] = []
        self.faults: list[Fault] = []
        self.repeated = 0

    def sent(self, caller: str) -> int:
        """A request is on its way; its number."""
        with self._lock:
            self._number += 1
            self._open[self._number] = caller, time.monotonic()
            return self._number

    def ended(self, number: int, outcome: str, details: str = "") -> None:
        """And what became of it; a second time it counts as repeated."""
        with self._lock:
            if number not in self._open:
                self.repeated += 1
                return
            caller, sent = self._open.pop(number)
            self.entries.append(Entry(caller, sent, time.monotonic(), outcome, details))

    @property
    def unanswered(self) -> int:
        """Requests without an end."""
        with self._lock:
            return len(self._open)

    @contextmanager
    def fault(self, name: str, excuses: dict[str, frozenset[str]]) -> Iterator[Fault]:
        """For as long as a fault lasts; its entry, for a note."""
        fault = Fault(name, excuses)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            fault.ended = time.monotonic()

    def violations(self) -> list[Entry]:
        """Requests that were not answered rightly, though no fault declared it."""
        return [
            entry
            for entry in self.entries
            if entry.outcome != RIGHT
            and not any(fault.excuses_entry(entry) for fault in self.faults)
        ]

    def by_caller(self) -> dict[str, Counter[str]]:
        """How often each outcome came, for each kind of caller."""
        found: dict[str, Counter[str]] = {}
        for entry in self.entries:
            found.setdefault(entry.caller, Counter())[entry.outcome] += 1
        return found

    def excused(self, fault: Fault) -> int:
        """Requests under way meanwhile that failed as it declared."""
        return sum(fault.excuses_entry(entry) for entry in self.entries)
