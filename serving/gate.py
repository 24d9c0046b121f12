"""Gate: which of grpcio's calls are answered, by their tokens, before any of a request is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc

from serving.authorization import RPCS, Authorization
from serving.calls import MethodHandler, caller_of, tokens_of
from serving.digits import DIGITS
from serving.errors import ServingError
from serving.inference import InferenceService
from serving.replies import Refusal, refusal
from serving.servicer import SERVICE
from serving.tokens import Need
from serving.transport import refusing

_INFER = f"/{SERVICE.full_name}/ModelInfer"
# Of these each request is charged, and not the stream.
_STREAMS = (f"/{SERVICE.full_name}/ModelStreamInfer", f"/{DIGITS.full_name}/StreamClassify")


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # none at run time
    """In front of all services. A `private` server's ModelInfer were charged by the lane already.

    Inference that is refused is counted and observed, as what there is no room for.
    """

    def __init__(
        self, authorization: Authorization, service: InferenceService, *, private: bool
    ) -> None:
        self._authorization = authorization
        self._service = service
        self._uncharged = (*_STREAMS, *([_INFER] if private else []))

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], MethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        """The call's handler, or one that refuses it."""
        method = handler_call_details.method
        need = RPCS.get(method, Need.TOKEN)  # whoever holds none learns of no method
        headers = tokens_of(handler_call_details.invocation_metadata)
        try:
            self._authorization.require(need, headers, charge=method not in self._uncharged)
        except ServingError as error:
            rpc = method.rpartition("/")[2]
            counted = self._count if need is Need.INFER else _uncounted
            return refusing(functools.partial(counted, error, rpc))
        return continuation(handler_call_details)

    def _count(self, error: ServingError, rpc: str, context: Any) -> Refusal:
        return self._service.refuse(error, caller=functools.partial(caller_of, rpc, context))


def _uncounted(error: ServingError, rpc: str, context: Any) -> Refusal:
    return refusal(error, "", {"rpc": rpc})
