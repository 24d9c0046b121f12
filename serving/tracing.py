"""Spans: what OpenTelemetry is told of requests. The only module that imports it; an extra.

A request has spans if its caller's trace is sampled: whoever begins a trace decides. Where the
collector is away spans are dropped, and requests notice nothing.

Names are those of https://opentelemetry.io/docs/specs/semconv/rpc/grpc/, and `inference.*` ours.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from itertools import accumulate
from urllib.parse import unquote

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.access import Caller, Finished, Timing

_SERVICE = "inference.GRPCInferenceService"
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#grpc-status: to a server, the others are
# its callers' faults.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
# Spans that may wait for the collector; more are dropped.
_MAX_WAITING = 8192


class Spans:
    """Makes spans of finished requests, and sends them from a thread of its own."""

    def __init__(self, endpoint: str, version: str, worker: int) -> None:
        self._exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider = TracerProvider(
            ParentBased(ALWAYS_OFF), _resource(version, worker), shutdown_on_exit=False
        )
        processor = BatchSpanProcessor(self._exporter, max_queue_size=_MAX_WAITING)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("serving", version)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, finished: Finished) -> None:
        """The spans of a request, if its caller's trace is sampled."""
        caller = finished.caller() if finished.caller else None
        if not caller or not caller.traceparent:
            return
        # All durations are of the monotonic clock; only here do they meet the other.
        epoch = time.time_ns() - time.monotonic_ns()
        started = epoch + _nanoseconds(finished.arrived)
        span = self._tracer.start_span(
            f"{_SERVICE}/{caller.rpc}",
            self._propagator.extract(_headers(caller)),
            SpanKind.SERVER,
            start_time=started,
        )
        if not span.is_recording():
            return
        span.set_attributes(_attributes(finished, caller))
        if finished.code in _FAULTS:
            span.set_status(StatusCode.ERROR, finished.details)
        if finished.timing:
            self._stages(span, started, finished.timing)
        span.end(started + _nanoseconds(finished.seconds))

    def close(self, timeout: float) -> None:
        """Send what is left, for at most `timeout` seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(timeout)
        if closing.is_alive():
            # It then gives up what it would try again.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _stages(self, parent: Span, started: int, timing: Timing) -> None:
        context = set_span_in_context(parent)
        rows = {"inference.batch.rows": timing.stages.rows}
        for name, start, end in _stages(started, timing):
            span = self._tracer.start_span(name, context, attributes=rows, start_time=start)
            span.end(end)


def _resource(version: str, worker: int) -> Resource:
    """What this process is; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES may say otherwise."""
    ours = Resource.create(
        {
            "service.name": "digits",
            "service.version": version,
            "service.instance.id": str(uuid.uuid4()),
            "process.pid": os.getpid(),
            "inference.worker": worker,
        }
    )
    return ours.merge(OTELResourceDetector().detect())


def _headers(caller: Caller) -> Mapping[str, str]:
    return {"traceparent": caller.traceparent, "tracestate": caller.tracestate}


def _address(peer: str) -> str:
    """`ipv4:127.0.0.1:50000` → `127.0.0.1`."""
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else rest


def _attributes(finished: Finished, caller: Caller) -> dict[str, str | int]:
    told: dict[str, str | int] = {
        "rpc.system.name": "grpc",
        "rpc.method": f"{_SERVICE}/{caller.rpc}",
        "rpc.response.status_code": finished.code,
        "network.peer.address": _address(caller.peer),
        "error.type": finished.code if finished.code in _FAULTS else "",
        "inference.model.name": finished.model,
        "inference.model.version": finished.version,
        "inference.request.id": finished.id or caller.request_id,
        "inference.request.rows": finished.rows,
    }
    return {name: value for name, value in told.items() if value}


def _stages(started: int, timing: Timing) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each of the stages, one after the other."""
    stages = timing.stages
    durations = {
        "queue": timing.queue_seconds,
        "compute_input": stages.compute_input_seconds,
        "compute_infer": stages.compute_infer_seconds,
        "compute_output": stages.compute_output_seconds,
    }
    ends = [*accumulate(map(_nanoseconds, durations.values()), initial=started)]
    return zip(durations, ends, ends[1:], strict=False)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
