"""What is told of a request once it is over: `Finished`, for whoever observes; and the access log.

Nobody observes by default, and then none of this is made.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from serving.batch import Stages

# What the native lane chose a request for; where it chose it for nothing, it says so.
FOR_LOG, FOR_TRACE = "log", "trace"

# Of a name that a caller chose, which may be as long as a message.
_LONGEST = 200

log = logging.getLogger(__name__)


class Caller(NamedTuple):
    """Who asked, as the transport knows it; all but `rpc` and `peer` are headers of the call."""

    rpc: str
    peer: str
    request_id: str = ""  # x-request-id
    traceparent: str = ""  # https://www.w3.org/TR/trace-context/
    tracestate: str = ""
    chosen: str = ""  # of the lane: empty where it left that to whoever observes

    @property
    def trace_id(self) -> str:
        """That of the trace that the call is part of, or nothing."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) > 3 and len(parts[1]) == 32 else ""


NOBODY = Caller("", "")


class Timing(NamedTuple):
    """What an answer cost, by which version; durations in seconds."""

    version: str
    queue_seconds: float
    stages: Stages


class Finished(NamedTuple):
    """A request that was answered or refused. Where no such model is served, model and version are
    what was asked for; both are empty for one that was refused unread, and `timing` is None."""

    caller: Callable[[], Caller] | None  # asked only by who needs it: reading headers takes time
    model: str
    version: str
    id: str  # as the request has it
    code: str
    details: str  # why it was refused
    rows: int
    request_bytes: int
    response_bytes: int
    arrived: float  # time.monotonic
    seconds: float  # from then until the answer was on its way
    timing: Timing | None

    @property
    def chosen(self) -> str:
        """`Caller.chosen`."""
        return self.caller().chosen if self.caller else ""

    def facts(self) -> dict[str, object]:
        """For the log; what is empty is left out."""
        who = self.caller() if self.caller else NOBODY
        told = {
            "rpc": who.rpc,
            "peer": who.peer,
            "model": self.model,
            "version": self.version,
            "request_id": self.id or who.request_id,
            "trace_id": who.trace_id,
            "code": self.code,
            "details": self.details,
            "rows": self.rows,
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
        }
        short = {k: v[:_LONGEST] if isinstance(v, str) else v for k, v in told.items() if v}
        return {**short, **self._durations()}

    def _durations(self) -> dict[str, object]:
        """Of the request, then of the batch that it was in."""
        durations = {"seconds": self.seconds}
        if not self.timing:
            return {"seconds": round(self.seconds, 6)}
        stages = self.timing.stages._asdict()
        rows = stages.pop("rows")
        durations |= {"queue_seconds": self.timing.queue_seconds, **stages}
        return {**{k: round(v, 6) for k, v in durations.items()}, "batch_rows": rows}


Observe = Callable[[Finished], None]


class Sampling:
    """Takes the first of so many, again and again, until it has taken `count`."""

    def __init__(self, rate: int, count: int = -1) -> None:
        self._rate = rate
        self._left = count  # negative: no end
        self._seen = 0
        self._lock = threading.Lock()

    def takes_next(self, chosen: bool | None = None) -> bool:
        """Whether the next one is taken; `chosen` where somebody else has counted so far and says
        whether it is its turn."""
        with self._lock:
            turn = self._seen % self._rate == 0 if chosen is None else chosen
            self._seen += chosen is None
            taken = bool(self._left) and turn
            self._left -= taken and self._left > 0
        return taken

    @property
    def spent(self) -> bool:
        """It has taken all that it may."""
        return self._left == 0


def access_log(every: int, *, chosen: bool = False) -> Observe:
    """Logs the first request of so many, at level info; where some were `chosen` before they came
    here, by `Caller.chosen`, those and no others of them."""
    sampling = Sampling(every)

    def observe(finished: Finished) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        what = finished.chosen if chosen else ""
        if sampling.takes_next(what == FOR_LOG if what else None):
            log.info("request", extra=finished.facts())

    return observe
