"""The one table from errors to canonical status names, for every transport and for the metrics.

https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

import logging

from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    InvalidInput,
    LoadFailed,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    NotAllowed,
    NotSupported,
    QueueFull,
    RequestCancelled,
)

# An error's status is its class's, or else that of the nearest class it inherits from.
STATUS: dict[type[BaseException], str] = {
    ModelNotFound: "NOT_FOUND",
    ModelNotReady: "UNAVAILABLE",
    BatcherClosed: "UNAVAILABLE",
    InvalidInput: "INVALID_ARGUMENT",
    QueueFull: "RESOURCE_EXHAUSTED",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    RequestCancelled: "CANCELLED",
    ModelFailed: "INTERNAL",
    LoadFailed: "FAILED_PRECONDITION",
    NotAllowed: "PERMISSION_DENIED",
    NotSupported: "UNIMPLEMENTED",
}
# Names that a client chose appear in messages, and gRPC carries those in a header of 8 KiB.
_MAX_DETAILS = 1000

log = logging.getLogger(__name__)


def status_of(error: BaseException) -> tuple[str, str]:
    """What to answer; an error outside the table is logged, and its text kept to ourselves."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind], str(error)[:_MAX_DETAILS]
    log.error("unexpected error", exc_info=error)
    return "INTERNAL", "internal error"
