"""The client for asyncio: `Client`'s methods, to be awaited; what they do is `client_calls`'."""

# A timeout is one of the protocol's deadlines, which the server is told.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, overload

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.client_calls import Calls, Truth
from serving.client_channel import ADDRESS, TIMEOUT, V2_SERVICE, Tls, target
from serving.client_images import Images, images_of, needs_decoding
from serving.client_steps import Ask, Method, Pause, Result, Steps, closed, failed
from serving.client_types import (
    Classification,
    FeedbackResult,
    Label,
    ModelMetadata,
    ModelQuality,
    ModelState,
    ModelStatistics,
    Prediction,
    RequestFailed,
    ServerMetadata,
)


class AsyncClient:
    """A connection to one server, or to all replicas of one, for the event loop that runs.

    Its methods are `Client`'s, and so are their arguments, answers and errors. Many may be awaited
    at the same time; close it, or use it in `async with`.
    """

    def __init__(
        self,
        address: str = ADDRESS,
        *,
        service: str = V2_SERVICE,
        load_balancing: str = "pick_first",
        retry: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
        tls: Tls | bool = False,
        token: str | None = None,
        allow_plain_token: bool = False,
    ) -> None:
        """As `Client`'s; to be made where the loop runs."""
        where = target(address, load_balancing, credentials, tls, token, allow_plain_token)
        self._address = address
        self._service = service
        self._metadata = where.metadata()
        self._calls = Calls(service, load_balancing, retry)
        self._channel = where.async_channel()
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._address}>"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are awaited fail by RequestFailed, CANCELLED."""
        self._calls.close()
        await self._channel.close(None)

    async def ready(self, timeout: float = TIMEOUT, *, model: str = "") -> bool:
        """As `Client.ready`."""
        return await self._take(self._calls.ready(model, timeout))

    async def wait_until_ready(self, timeout: float = 60.0, *, model: str = "") -> None:
        """As `Client.wait_until_ready`."""
        await self._take(self._calls.wait_until_ready(model, timeout))

    async def classify(
        self,
        images: Images,
        model: str,
        *,
        version: str = "",
        timeout: float = TIMEOUT,
        rows_per_request: int = 64,
    ) -> Classification:
        """As `Client.classify`; files are read and images decoded on a thread."""
        if needs_decoding(images):
            array = await asyncio.to_thread(images_of, images)
        else:
            array = images_of(images)
        steps = self._calls.classify(array, model, version, timeout, rows_per_request)
        return await self._take(steps)

    @overload
    async def feedback(
        self, prediction: Prediction, truth: Label, *, timeout: float = TIMEOUT
    ) -> FeedbackResult: ...

    @overload
    async def feedback(
        self,
        prediction: Classification,
        truth: Sequence[Label] | NDArray[np.integer[Any]],
        *,
        timeout: float = TIMEOUT,
    ) -> list[FeedbackResult]: ...

    async def feedback(
        self,
        prediction: Prediction | Classification,
        truth: Truth,
        *,
        timeout: float = TIMEOUT,
    ) -> FeedbackResult | list[FeedbackResult]:
        """As `Client.feedback`."""
        if isinstance(prediction, Prediction):
            return await self._take(self._calls.feedback(prediction, truth, timeout))
        return await self._take(self._calls.feedback_on_all(prediction, truth, timeout))

    async def send_feedback(
        self,
        prediction_ids: Sequence[str],
        labels: Sequence[str],
        *,
        timeout: float = TIMEOUT,
    ) -> list[FeedbackResult]:
        """As `Client.send_feedback`."""
        return await self._take(self._calls.send_feedback(prediction_ids, labels, timeout))

    async def quality(
        self,
        model: str = "",
        version: str = "",
        *,
        timeout: float = TIMEOUT,
    ) -> list[ModelQuality]:
        """As `Client.quality`."""
        return await self._take(self._calls.quality(model, version, timeout))

    async def server(self, *, timeout: float = TIMEOUT) -> ServerMetadata:
        """As `Client.server`."""
        return await self._take(self._calls.server(timeout))

    async def models(
        self,
        *,
        ready: bool = False,
        timeout: float = TIMEOUT,
    ) -> list[ModelState]:
        """As `Client.models`."""
        return await self._take(self._calls.models(ready, timeout))

    async def metadata(
        self,
        model: str,
        version: str = "",
        *,
        timeout: float = TIMEOUT,
    ) -> ModelMetadata:
        """As `Client.metadata`."""
        return await self._take(self._calls.metadata(model, version, timeout))

    async def statistics(
        self,
        model: str = "",
        version: str = "",
        *,
        timeout: float = TIMEOUT,
    ) -> list[ModelStatistics]:
        """As `Client.statistics`."""
        return await self._take(self._calls.statistics(model, version, timeout))

    async def _take(self, steps: Steps[Result]) -> Result:
        """All steps, one after the other."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._do(step)
                except RequestFailed as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _do(self, step: Ask | Pause) -> object:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        method = self._method(step.method)
        try:
            return await method(
                step.request,
                timeout=step.timeout,
                metadata=self._metadata,
                wait_for_ready=step.wait,
            )
        except grpc.RpcError as error:
            raise failed(error) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):  # also gRPC's, of a closed channel
            if self._calls.closed and not _is_cancelled():
                raise closed() from None
            raise

    def _method(self, method: Method[Any, Any]) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        path = method.path(self._service)
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(
                path, method.question.SerializeToString, method.reply.FromString
            )
        return self._methods[path]


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
