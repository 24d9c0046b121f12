"""What the handlers of grpcio's calls share."""

from __future__ import annotations

import math
import time
from typing import Any, TypeAlias

import grpc

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def deadline_of(context: Any) -> float:
    """The call's deadline as time.monotonic; infinite without one."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining
