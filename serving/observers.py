"""Who is told of each request that is over, by configuration: the access log, and spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.access import Observe, access_log
from serving.config import ServerConfig
from serving.errors import StartupError

if TYPE_CHECKING:  # it imports OpenTelemetry, which need not be there
    from serving.tracing import Spans


def spans(config: ServerConfig, version: str, worker: int) -> Spans | None:
    """What sends spans; None without an endpoint. StartupError as `spans_class` has it."""
    if not config.otlp_endpoint:
        return None
    return spans_class()(config.otlp_endpoint, version, worker)


def spans_class() -> type[Spans]:
    """StartupError where what sends spans is not installed."""
    try:
        from serving.tracing import Spans
    except ImportError as error:
        raise StartupError(
            f"--otlp-endpoint needs the tracing extra, pip install 'digits[tracing]': {error}"
        ) from None
    return Spans


def observers(
    config: ServerConfig, spans: Spans | None, *, chosen: bool = False
) -> tuple[Observe, ...]:
    """All that the configuration asks for; `chosen` where the native lane says what is logged."""
    log_some = (access_log(config.access_log, chosen=chosen),) if config.access_log else ()
    return (*log_some, spans.record) if spans else log_some
