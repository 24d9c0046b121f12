"""The tables from errors to canonical status names, for every transport, and to reasons, for the
metrics.

https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeVar

from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    Draining,
    InvalidInput,
    LoadFailed,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    NoRoom,
    NotAllowed,
    NotSupported,
    QueueFull,
    Rejection,
    RequestCancelled,
)

# An error's entry is its class's, or else that of the nearest class it inherits from.
STATUS: dict[type[BaseException], str] = {
    ModelNotFound: "NOT_FOUND",
    ModelNotReady: "UNAVAILABLE",
    BatcherClosed: "UNAVAILABLE",
    InvalidInput: "INVALID_ARGUMENT",
    NoRoom: "RESOURCE_EXHAUSTED",
    Draining: "UNAVAILABLE",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    RequestCancelled: "CANCELLED",
    ModelFailed: "INTERNAL",
    LoadFailed: "FAILED_PRECONDITION",
    NotAllowed: "PERMISSION_DENIED",
    NotSupported: "UNIMPLEMENTED",
}
REASON: dict[type[BaseException], Rejection] = {
    ModelNotFound: Rejection.MODEL_NOT_FOUND,
    ModelNotReady: Rejection.MODEL_NOT_READY,
    BatcherClosed: Rejection.MODEL_NOT_READY,
    InvalidInput: Rejection.INVALID_INPUT,
    NotSupported: Rejection.INVALID_INPUT,
    QueueFull: Rejection.QUEUE_FULL,
    NoRoom: Rejection.OVERLOADED,
    Draining: Rejection.DRAINING,
    DeadlineExceeded: Rejection.DEADLINE,
    RequestCancelled: Rejection.CANCELLED,
    ModelFailed: Rejection.FAILED,
}
# Names that a client chose appear in messages, and gRPC carries those in a header of 8 KiB.
_MAX_DETAILS = 1000

Entry = TypeVar("Entry")

log = logging.getLogger(__name__)


def status_of(error: BaseException) -> tuple[str, str]:
    """What to answer; an error outside the table is logged, and its text kept to ourselves."""
    if status := _entry(STATUS, error):
        return status, str(error)[:_MAX_DETAILS]
    log.error("unexpected error", exc_info=error)
    return "INTERNAL", "internal error"


def reason_of(error: BaseException) -> Rejection:
    """As what the metrics count it."""
    return _entry(REASON, error) or Rejection.FAILED


def _entry(table: Mapping[type[BaseException], Entry], error: BaseException) -> Entry | None:
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)
