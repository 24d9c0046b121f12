"""The tables from errors to canonical status names, for every transport, and to reasons, for the
metrics.

Where an error becomes an answer is where it is logged, if it is the server's own fault.

https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

import logging
import uuid
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
    RateLimited,
    Rejection,
    RequestCancelled,
    Unauthenticated,
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
    Unauthenticated: "UNAUTHENTICATED",
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
    RateLimited: Rejection.RATE_LIMITED,
    NoRoom: Rejection.OVERLOADED,
    Draining: Rejection.DRAINING,
    DeadlineExceeded: Rejection.DEADLINE,
    RequestCancelled: Rejection.CANCELLED,
    Unauthenticated: Rejection.UNAUTHENTICATED,
    NotAllowed: Rejection.NOT_ALLOWED,
    ModelFailed: Rejection.FAILED,
}
# Bytes. Names that a client chose appear in messages, and gRPC carries those in a header of 8 KiB,
# three bytes for most of one: a caller who got more would be told of its size, and nothing else.
_MAX_DETAILS = 1000

Entry = TypeVar("Entry")

log = logging.getLogger(__name__)


def status_of(error: BaseException, **facts: object) -> tuple[str, str]:
    """What to answer. What is the server's own fault is logged, once and here, with its traceback
    and the `facts` of the request, and the answer tells what to look for in the log.

    The text of an error outside the table is kept to ourselves.
    """
    known = _entry(STATUS, error)
    status, details = (known, fitting(str(error))) if known else ("INTERNAL", "internal error")
    if status != "INTERNAL":
        log.debug("refused: %s", details, extra=facts)
        return status, details
    if not facts.get("request_id"):
        facts["request_id"] = uuid.uuid4().hex
        details = f"{details} (request {facts['request_id']})"
    cause = error.__cause__ if isinstance(error, ModelFailed) else None
    log_fault(cause or error, facts)
    if cause:  # its frames hold the batch, and that holds it: until the garbage collector came
        error.__cause__ = None
    return status, details


def fitting(text: str) -> str:
    """What of it a message can carry: whole characters, and no halves of pairs."""
    return text.encode(errors="replace")[:_MAX_DETAILS].decode(errors="ignore")


def log_fault(error: BaseException, facts: Mapping[str, object]) -> None:
    """What was the server's own fault, with its traceback and what is known of the request."""
    known = {name: fact for name, fact in facts.items() if fact}
    log.error("a request failed", exc_info=error, extra=known)


def is_fault(error: BaseException) -> bool:
    """Whether it is the server's own fault."""
    return _entry(STATUS, error) in (None, "INTERNAL")


def reason_of(error: BaseException) -> Rejection:
    """As what the metrics count it."""
    return _entry(REASON, error) or Rejection.FAILED


def _entry(table: Mapping[type[BaseException], Entry], error: BaseException) -> Entry | None:
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)
