"""The native lane's batcher and server: the module that serving/lane/binding builds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.batch import Complete, Request, Tensors
from serving.predictions import PredictionPlan

# The batcher: binding/batcher.cpp. serving/native_batcher.py is its face.

# Of a refusal: the index of its Rejection, its text, when to try again, whether the version is
# being unloaded, what the model raised.
Refusal = tuple[int, str, float, bool, BaseException | None]
# rows, request_rows, queue_seconds, request_seconds, compute_{input,infer,output}_seconds.
Observe = Callable[[int, list[int], list[float], list[float], float, float, float], None]

class BatchObserver:
    """Who hears of what a batcher does. Its `waiting` must not take Python's lock: `Batcher.submit`
    holds it."""

class BatcherOptions:
    def __init__(
        self,
        *,
        name: str,
        max_batch_size: int,
        max_queue_delay: float,
        max_queue_size: int,
        instance_count: int,
        buckets: list[int],
        priority_levels: int,
    ) -> None: ...

class Batcher:
    """With an `observer`, `observe` and `failed` are told nothing."""

    def __init__(
        self,
        run: Callable[[Tensors], Tensors],
        options: BatcherOptions,
        *,
        answered: Callable[[Complete, Tensors, float, float, int, float, float, float], None],
        refused: Callable[[Complete, Refusal], None],
        facts_name: str,
        facts_dtype: np.dtype[Any],
        observer: BatchObserver | None = ...,
        observe: Observe | None = ...,
        failed: Callable[[str], None] | None = ...,
        plan: PredictionPlan | None = ...,
        inputs: Sequence[str] = ...,
        buffers: Sequence[Tensors] = ...,
    ) -> None: ...
    def submit(self, request: Request) -> Refusal | None: ...
    def close(self, timeout: float) -> bool: ...
    @property
    def pending(self) -> int: ...

# The server: binding/server.cpp. serving/native_transport.py is its face.

_Slots = memoryview[float]
_Spec = tuple[str, str, Sequence[int]]  # name, datatype, shape
_Tls = tuple[bytes, bytes, bytes]  # certificate, key, clients' CA or nothing; PEM

class ModelCounters:
    """What one version counts, into slots that nobody else writes; not what has none."""

    def __init__(
        self,
        *,
        slots: Mapping[str, _Slots],
        histograms: Mapping[str, tuple[_Slots, Sequence[float]]],
        predictions: Sequence[_Slots],
        refusal: Callable[[str, int], tuple[_Slots, _Slots]],
        batches: Callable[[int], _Slots],
    ) -> None: ...

class ServedModel:
    """One version as requests are checked for it, run and counted."""

    def __init__(
        self,
        name: str,
        version: str,
        inputs: Sequence[_Spec],
        outputs: Sequence[_Spec],
        labels: Sequence[str],
        batcher: Batcher,
        counters: ModelCounters,
    ) -> None: ...

class Server:
    """The lane of one process: a thread that answers ModelInfer, and passes on all other calls.

    `start` and `renew_tls` raise RuntimeError for a certificate or a key that is no good.
    """

    def __init__(
        self,
        *,
        upstream_path: str,
        settings: Mapping[str, float],
        tls: _Tls | None,
        key: bytes | None,
        refusal: Callable[[str, int], tuple[_Slots, _Slots]],
        request_bytes: _Slots,
        in_flight: _Slots,
        connections: Mapping[str, _Slots],
        failed: Callable[[BaseException | None, str, str, str, str], None],
    ) -> None: ...
    def observer(self, counters: ModelCounters, warn: Callable[[str], None]) -> BatchObserver: ...
    def start(self, listeners: Sequence[int]) -> None: ...
    def renew_tls(self, tls: _Tls) -> None: ...
    def set_routes(self, routes: Mapping[tuple[str, str], ServedModel]) -> None: ...
    def set_trace_rates(self, rates: Mapping[str, int]) -> None: ...
    def set_tokens(self, tokens: Sequence[tuple[str, bytes, bool, float, float]]) -> None: ...
    def wait_for_rate(self, name: str) -> float: ...
    def passed_on(self, more: int) -> None: ...
    @property
    def in_flight(self) -> int: ...
    def drain(self) -> None: ...
    def wait_until_idle(self, timeout: float) -> bool: ...
    def stop(self) -> None: ...
