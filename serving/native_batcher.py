"""NativeBatcher: DynamicBatcher's interface over the lane's batcher.

The lane must be built for one to be made, not for this to be imported.
Owns what of it is Python's: how outcomes and refusals become Answers and errors, and the log. The
queue, its order and its threads are serving/lane/core's.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from serving.batch import Answer, Complete, Request, Run, Stages, Tensors, tell
from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
    Rejection,
    ServingError,
)
from serving.execution import Execution
from serving.predictions import FACTS, RECORD, PredictionPlan

if TYPE_CHECKING:
    from serving.lane import native

# Seconds that what runs is waited for where nobody closed the batcher, so that no thread is inside
# Python while that ends.
_LAST_SECONDS = 1.0

log = logging.getLogger(__name__)


class NativeBatcher:
    """As DynamicBatcher, but that it takes no BYTES, and that a request's deadline is what it was
    when it was submitted.

    With an `observer` it is told instead of `observe`, and how many wait, which Python is not: that
    is told under the queue's lock. With a `plan` the facts of rows are added to what `run` gives,
    as Predictor does. `inputs` are a model's in its order, where the lane's own requests are to
    share batches with these. What `run` is given cannot be written to, and is its own as long as it
    keeps it: what is in `buffers`, too.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch_size: int,
        max_queue_delay: float = 0.0,
        max_queue_size: int = 256,
        instance_count: int = 1,
        buckets: Sequence[int] = (),
        priority_levels: int = 1,
        observe: Callable[[Execution], None] | None = None,
        name: str = "batcher",
        observer: native.BatchObserver | None = None,
        plan: PredictionPlan | None = None,
        inputs: Sequence[str] = (),
        buffers: Sequence[Tensors] = (),
    ) -> None:
        from serving.lane import native

        self.native = native.Batcher(
            run,
            native.BatcherOptions(
                name=name,
                max_batch_size=max_batch_size,
                max_queue_delay=max_queue_delay,
                max_queue_size=max_queue_size,
                instance_count=instance_count,
                buckets=sorted(buckets),
                priority_levels=priority_levels,
            ),
            answered=_answered,
            refused=_refused,
            facts_name=FACTS,
            facts_dtype=RECORD,
            observer=observer,
            observe=observe and _observing(observe),
            failed=log.warning,
            plan=plan,
            inputs=inputs,
            buffers=buffers,
        )
        weakref.finalize(self, self.native.close, _LAST_SECONDS)

    @property
    def pending(self) -> int:
        """Callers' requests that wait to be taken into a batch."""
        return self.native.pending

    def submit(self, request: Request) -> None:
        """Queue the request; it will be completed once, on another thread.

        Raises InvalidInput, QueueFull or BatcherClosed, and then does not complete it; TypeError
        for an array that the lane does not carry.
        """
        if refusal := self.native.submit(request):
            raise _error(*refusal)

    def close(self, timeout: float) -> bool:
        """Take nothing more, let what is queued or runs finish; whether all did in time.

        Then the threads have ended. Otherwise, after `timeout` seconds, what is still queued fails
        and they end when their runs do.
        """
        return self.native.close(timeout)


# What the lane calls, on its threads.


def _answered(
    complete: Complete,
    outputs: Tensors,
    queue_seconds: float,
    request_seconds: float,
    rows: int,
    *seconds: float,
) -> None:
    tell(complete, Answer(outputs, queue_seconds, request_seconds, Stages(rows, *seconds)))


def _refused(complete: Complete, refusal: native.Refusal) -> None:
    tell(complete, _error(*refusal))


def _observing(observe: Callable[[Execution], None]) -> native.Observe:
    def observed(
        rows: int,
        request_rows: list[int],
        queue_seconds: list[float],
        request_seconds: list[float],
        *seconds: float,
    ) -> None:
        try:
            observe(Execution(rows, request_rows, queue_seconds, request_seconds, *seconds))
        except Exception:  # the answers are good all the same
            log.exception("a batch could not be observed")

    return observed


REJECTIONS = tuple(Rejection)  # the lane's Reason is an index of it
_ERRORS: dict[Rejection, type[ServingError]] = {
    Rejection.INVALID_INPUT: InvalidInput,
    Rejection.DEADLINE: DeadlineExceeded,
    Rejection.FAILED: ModelFailed,
}


def _error(
    reason: int, details: str, retry_after: float, closed: bool, cause: BaseException | None
) -> ServingError:
    if closed:
        return BatcherClosed(details)
    rejection = REJECTIONS[reason]
    if rejection is Rejection.QUEUE_FULL:
        return QueueFull(details, retry_after)
    error = _ERRORS[rejection](details)
    error.__cause__ = cause
    return error
