"""Tracer: Triton's trace settings. A traced request is a line in the log, at level info, with what
the access log tells. It has nothing to do with OpenTelemetry, which is `tracing`'s.

Settings are a list of texts each, as in Triton: `trace_level` OFF or TIMESTAMPS, `trace_rate` (one
request in so many), `trace_count` (so many more, -1 for no end). A model may have its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from serving.access import FOR_TRACE, Finished, Sampling
from serving.errors import InvalidInput

OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"
_DEFAULTS = {"trace_level": (OFF,), "trace_rate": ("1000",), "trace_count": ("-1",)}

Settings = dict[str, tuple[str, ...]]

log = logging.getLogger(__name__)


class Tracer:
    """Decides which requests are traced. `active` is false where none can be: it costs nothing.

    `changed` is of who chooses requests before they come here. It is told one request in how many
    is traced, of each model that has settings of its own and, under the empty name, of all others;
    0 is none. Whenever that has changed, under a lock.
    """

    def __init__(self, changed: Callable[[Mapping[str, int]], None] | None = None) -> None:
        self.active = False
        self._changed = changed
        self._settings: dict[str, Settings] = {"": dict(_DEFAULTS)}
        self._samplings: dict[str, Sampling] = {}  # of those names whose tracing is on
        self._changing = threading.Lock()

    def settings(self, model: str = "") -> Settings:
        """What holds for a model, or by default where the name is empty."""
        return {**self._settings[""], **self._settings.get(model, {})}

    def change(self, settings: Mapping[str, tuple[str, ...]], model: str = "") -> None:
        """Change settings of a model, or of all that have none; one without values is reset.

        Raises InvalidInput naming the setting, and then changes nothing. Counting begins anew.
        """
        for name, values in settings.items():
            _check(name, values)
        with self._changing:
            kept = {**self._settings.get(model, {}), **settings}
            kept = {name: values for name, values in kept.items() if values}
            self._settings[model] = kept if model else {**_DEFAULTS, **kept}
            if model and not kept:
                del self._settings[model]
            self._samplings = {
                name: Sampling(int(now["trace_rate"][0]), int(now["trace_count"][0]))
                for name in self._settings
                if TIMESTAMPS in (now := self.settings(name))["trace_level"]
            }
            self.active = bool(self._samplings)
            self._tell_rates()

    def record(self, finished: Finished) -> None:
        """Log a request that was answered, if it is one of those to trace."""
        if finished.timing is None:
            return
        sampling = self._samplings.get(finished.model if finished.model in self._settings else "")
        chosen = bool(self._changed) and finished.chosen == FOR_TRACE
        if sampling and sampling.takes_next(chosen or None):
            log.info("trace", extra=finished.facts())
            if sampling.spent:
                with self._changing:
                    self._tell_rates()

    def _tell_rates(self) -> None:
        if not self._changed:
            return
        on = {name for name, sampling in self._samplings.items() if not sampling.spent}
        rates = {name: int(self.settings(name)["trace_rate"][0]) for name in self._settings}
        self._changed({name: rate if name in on else 0 for name, rate in rates.items()})


def _check(name: str, values: tuple[str, ...]) -> None:
    if name not in _DEFAULTS:
        raise InvalidInput(f"trace setting {name!r} is not supported; there is {_names()}")
    if not values:
        return
    if name == "trace_level":
        if not set(values) <= {OFF, TIMESTAMPS}:
            raise InvalidInput(f"trace_level: expected OFF or TIMESTAMPS, got {list(values)}")
        return
    low = 1 if name == "trace_rate" else -1
    digits = values[0].removeprefix("-")
    if not (len(values) == 1 and digits.isdecimal() and len(digits) < 10 and int(values[0]) >= low):
        raise InvalidInput(f"{name}: expected one whole number from {low}, got {list(values)}")


def _names() -> str:
    return ", ".join(_DEFAULTS)
