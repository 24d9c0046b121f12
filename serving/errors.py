"""What can go wrong, as types. Knows no transport: `servicer` maps these to status codes."""

from __future__ import annotations

from enum import StrEnum


class LoadFailure(StrEnum):
    """What was wrong with a version that was not served."""

    MANIFEST = "manifest"
    CHECKSUM = "checksum"
    SESSION = "session"
    SIGNATURE = "signature"
    HOLDOUT = "holdout"
    OTHER = "other"


class Rejection(StrEnum):
    """Why a request was not answered: few enough to be a metric's label."""

    QUEUE_FULL = "queue_full"
    OVERLOADED = "overloaded"  # refused unread
    INVALID_INPUT = "invalid_input"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_NOT_READY = "model_not_ready"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    FAILED = "failed"
    DRAINING = "draining"
    UNAUTHENTICATED = "unauthenticated"  # without a token that is known
    NOT_ALLOWED = "not_allowed"
    RATE_LIMITED = "rate_limited"


class ServingError(Exception):
    """A request that cannot be answered; its message is for the caller to read."""


class ModelNotFound(ServingError):
    """No model, or no version of it, has that name."""


class ModelNotReady(ServingError):
    """The model exists but is still loading, or failed to load."""


class InvalidInput(ServingError):
    """The request is at fault; the message names the tensor, what was expected and what came."""


class NoRoom(ServingError):
    """The server has more to do than it can; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(NoRoom):
    """As many requests wait for the model as may."""


class Overloaded(NoRoom):
    """As many requests are inside as may be: this one was not looked at."""


class RateLimited(NoRoom):
    """The caller's token has had as many calls as it may."""


class Draining(ServingError):
    """The server is stopping, and begins nothing new."""


class BatcherClosed(ServingError):
    """The version that the request was for is being unloaded: ask the registry again."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its answer was there."""


class RequestCancelled(ServingError):
    """The caller went away."""


class ModelFailed(ServingError):
    """The model failed while it ran; `__cause__` is for the server's log, not for the caller."""


class Unauthenticated(ServingError):
    """The caller sent no token that is known, and needs one."""


class NotAllowed(ServingError):
    """The caller may not do that, or not as the server was started."""


class LoadFailed(ServingError):
    """A model was to be loaded on request and could not be; the message says why."""


class NotSupported(ServingError):
    """A part of the protocol that this server does not have."""


class StartupError(Exception):
    """The server cannot start as configured; the message is one line for its operator."""


class ModelLoadError(Exception):
    """One version cannot be loaded; the message is one line for the operator.

    `reason` is a LoadFailure: few enough to be a metric's label.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = LoadFailure(reason)
