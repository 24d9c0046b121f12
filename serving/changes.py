"""How a change by one worker's administrator reaches all workers before he is answered.

GroupAdmin is the worker's end; Changes is the supervisor's, which also keeps them for those workers
that start later.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection

from serving import logs
from serving.errors import LoadFailed, ModelNotReady
from serving.messages import Change, Do, Told


class GroupAdmin:
    """Changes all workers: each call asks the supervisor and waits until every one has done it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[None]] = {}
        self._over = False

    def load(self, name: str) -> None:
        """Load a model in all workers."""
        self._ask(Change("load", (name,), ("model", name)))

    def unload(self, name: str) -> None:
        """Unload a model in all workers."""
        self._ask(Change("unload", (name,), ("model", name)))

    def change_logs(self, changes: logs.Changes) -> None:
        """Log more or less in all workers."""
        self._ask(Change("change_logs", (dict(changes),), ("logs", *sorted(changes))))

    def change_trace(self, settings: Mapping[str, tuple[str, ...]], model: str) -> None:
        """Trace more or less in all workers."""
        key = ("trace", model, *sorted(settings))
        self._ask(Change("change_trace", (dict(settings), model), key))

    def send(self, message: object) -> None:
        """Send to the supervisor; from any thread."""
        with self._sending:
            self._connection.send(message)

    def told(self, message: Told) -> None:
        """The supervisor says how a change went."""
        future = self._asked.pop(message.number, None)
        if future is None:  # it was told at the end already
            return
        if message.error:
            future.set_exception(message.error)
        else:
            future.set_result(None)

    def end(self) -> None:
        """Nobody listens any more: let nobody wait for an answer, or this process could not end."""
        with self._sending:
            self._over = True
        for number in list(self._asked):
            self.told(Told(number, _stopping()))

    def _ask(self, change: Change) -> None:
        number, future = next(self._numbers), Future[None]()
        with self._sending:
            if self._over:
                raise _stopping()
            self._asked[number] = future
            self._connection.send(Do(number, change))
        future.result()


def _stopping() -> ModelNotReady:
    return ModelNotReady("the server is stopping")


@dataclass(slots=True)
class _UnderWay:
    """A change that workers are making for one that asked."""

    asker: int | None  # None where it has died
    number: int  # the asker's
    change: Change
    waiting: set[int]
    error: Exception | None = None


class Changes:
    """Which workers are yet to make which change, and what a new worker has to make up for.

    Sends nothing itself: it says what to send to whom. Workers are known by their numbers.
    """

    def __init__(self) -> None:
        self._under_way: dict[int, _UnderWay] = {}
        self._numbers = itertools.count()
        self._made: dict[tuple[str, ...], Change] = {}

    @property
    def journal(self) -> tuple[Change, ...]:
        """What was changed for good, in its order, without what was changed again since."""
        return tuple(self._made.values())

    def begin(self, asker: int, order: Do, workers: Iterable[int]) -> Do:
        """What to send to all these workers, for one of them that asked."""
        number = next(self._numbers)
        self._under_way[number] = _UnderWay(asker, order.number, order.change, set(workers))
        return Do(number, order.change)

    def join(self, worker: int) -> list[Do]:
        """What to send to a new worker, since it is not in the journal yet."""
        for each in self._under_way.values():
            each.waiting.add(worker)
        return [Do(number, each.change) for number, each in self._under_way.items()]

    def done(self, worker: int, number: int, error: Exception | None) -> tuple[int, Told] | None:
        """A worker has made a change, or failed to: whom to tell what, if it was the last one."""
        each = self._under_way[number]
        each.waiting.discard(worker)
        each.error = each.error or error
        if each.waiting:
            return None
        del self._under_way[number]
        # A load that failed can have left an older version served.
        if each.error is None or isinstance(each.error, LoadFailed):
            self._made.pop(each.change.key, None)
            self._made[each.change.key] = each.change
        return None if each.asker is None else (each.asker, Told(each.number, each.error))

    def leave(self, worker: int) -> list[tuple[int, Told]]:
        """A worker died; nobody waits for it any more, nor is it told anything."""
        for each in self._under_way.values():
            if each.asker == worker:
                each.asker = None
        told = [self.done(worker, number, None) for number in list(self._under_way)]
        return [each for each in told if each]
