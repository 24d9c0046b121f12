"""What the handlers of grpcio's calls share."""

from __future__ import annotations

import math
import time
from typing import Any, TypeAlias

import grpc

from serving.access import Caller

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def deadline_of(context: Any) -> float:
    """The call's deadline as time.monotonic; infinite without one."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


def caller_of(rpc: str, context: Any) -> Caller:
    """Who calls; also once the call is over. Some microseconds: not for every call."""
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    return Caller(
        rpc,
        context.peer(),
        headers.get("x-request-id", ""),
        headers.get("traceparent", ""),
        headers.get("tracestate", ""),
    )
