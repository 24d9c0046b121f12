"""What can go wrong, as types. Knows no transport: `servicer` maps these to status codes."""

from __future__ import annotations

LOAD_FAILURES = ("manifest", "checksum", "session", "signature", "holdout", "other")


class ServingError(Exception):
    """A request that cannot be answered; its message is for the caller to read."""


class ModelNotFound(ServingError):
    """No model, or no version of it, has that name."""


class ModelNotReady(ServingError):
    """The model exists but is still loading, or failed to load."""


class InvalidInput(ServingError):
    """The request is at fault; the message names the tensor, what was expected and what came."""


class QueueFull(ServingError):
    """As many requests wait as may: the server is overloaded."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its answer was there."""


class RequestCancelled(ServingError):
    """The caller went away."""


class ModelFailed(ServingError):
    """The model failed while it ran; the reason is in the server's log."""


class StartupError(Exception):
    """The server cannot start as configured; the message is one line for its operator."""


class ModelLoadError(Exception):
    """One version cannot be loaded; the message is one line for the operator.

    `reason` is one of LOAD_FAILURES: few enough to be a metric's label.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
