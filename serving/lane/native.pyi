"""The native lane's batcher and server, of C++: serving/lane/binding."""

from collections.abc import Callable, Mapping, Sequence

_Slots = memoryview[float]
_Spec = tuple[str, str, Sequence[int]]  # name, datatype, shape

class ModelCounters:
    """What one version counts, into slots that nobody else writes."""

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

    Raises RuntimeError for a certificate or a key that cannot be read.
    """

    def __init__(
        self,
        *,
        upstream_path: str,
        settings: Mapping[str, float],
        tls: tuple[str, str, str] | None,
        key: bytes | None,
        refusal: Callable[[str, int], tuple[_Slots, _Slots]],
        request_bytes: _Slots,
        in_flight: _Slots,
        failed: Callable[[BaseException | None, str, str, str, str], None],
    ) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def connections(self) -> int: ...
    def observer(self, counters: ModelCounters, warn: Callable[[str], None]) -> BatchObserver: ...
    def start(self, listeners: Sequence[int]) -> None: ...
    def set_routes(self, routes: Mapping[tuple[str, str], ServedModel]) -> None: ...
    def set_observed(self, every: bool) -> None: ...
    def drain(self) -> None: ...
    def wait_until_idle(self, timeout: float) -> bool: ...
    def stop(self) -> None: ...
