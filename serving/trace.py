"""Tracer: Triton's trace settings. A traced request is one line of JSON in the log.

Settings are a list of texts each, as in Triton: `trace_level` OFF or TIMESTAMPS, `trace_rate` (one
request in so many), `trace_count` (so many more, -1 for no end). A model may have its own.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable, Mapping

from serving.errors import InvalidInput

OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"
_DEFAULTS = {"trace_level": (OFF,), "trace_rate": ("1000",), "trace_count": ("-1",)}

Settings = dict[str, tuple[str, ...]]

log = logging.getLogger(__name__)


class Tracer:
    """Decides which requests are traced. `active` is false where none can be: it costs nothing."""

    def __init__(self) -> None:
        self.active = False
        self._settings: dict[str, Settings] = {"": dict(_DEFAULTS)}
        self._left: dict[str, int] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def settings(self, model: str = "") -> Settings:
        """What holds for a model, or by default where the name is empty."""
        return {**self._settings[""], **self._settings.get(model, {})}

    def change(self, settings: Mapping[str, tuple[str, ...]], model: str = "") -> None:
        """Change settings of a model, or of all that have none; one without values is reset.

        Raises InvalidInput naming the setting, and then changes nothing.
        """
        for name, values in settings.items():
            _check(name, values)
        with self._lock:
            kept = dict(self._settings.get(model, {}))
            for name, values in settings.items():
                kept.pop(name, None)
                if values:
                    kept[name] = values
            self._settings[model] = kept if model else {**_DEFAULTS, **kept}
            self._left.pop(model, None)
            self.active = any(_is_on(each) for each in self._settings.values())

    def record(self, model: str, request_id: str, facts: Callable[[], dict[str, object]]) -> None:
        """Log what the facts say of an answered request, if it is one of those to trace."""
        if self._wanted(model):
            log.info("trace %s", json.dumps({"model": model, "id": request_id, **facts()}))

    def _wanted(self, model: str) -> bool:
        settings = self.settings(model)
        if not _is_on(settings) or next(self._numbers) % int(settings["trace_rate"][0]):
            return False
        key = model if model in self._settings else ""
        with self._lock:
            left = self._left.get(key, int(settings["trace_count"][0]))
            self._left[key] = left - 1 if left > 0 else left
        return left != 0


def _is_on(settings: Settings) -> bool:
    return TIMESTAMPS in settings.get("trace_level", ())


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
