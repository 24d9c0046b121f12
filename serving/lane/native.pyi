"""The module that serving/lane/binding builds."""

from collections.abc import Callable
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
    """With an `observer`, `observe`, `waiting` and `failed` are told nothing."""

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
        waiting: Callable[[int], None] | None = ...,
        failed: Callable[[str], None] | None = ...,
        plan: PredictionPlan | None = ...,
    ) -> None: ...
    def submit(self, request: Request) -> Refusal | None: ...
    def close(self, timeout: float) -> bool: ...
    @property
    def pending(self) -> int: ...
