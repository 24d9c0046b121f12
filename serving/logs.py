"""The log: its format and level at the start, and Triton's log settings while it runs.

Facts that a caller gives in `extra` are fields of their own in JSON, and key=value after a text.
All that Python says goes through the log; what native libraries print themselves does not.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

from serving.errors import InvalidInput

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_VERBOSE = "log_verbose_level"

Settings = dict[str, bool | int]
Changes = Mapping[str, bool | int | str]

# What every record has; all else of one came in `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

log = logging.getLogger("serving")


class Human(logging.Formatter):
    """A line of text, then the facts, then a traceback where there is one."""

    def __init__(self, worker: int | None = None) -> None:
        of_worker = "" if worker is None else f"[{worker}]"
        super().__init__(_FORMAT.replace("%(name)s", f"%(name)s{of_worker}"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The text of a record, without its traceback."""
        facts = "".join(f" {name}={_shown(value)}" for name, value in _facts(record).items())
        return super().formatMessage(record) + facts


class Json(logging.Formatter):
    """An object a line, a traceback included. Times are UTC, as RFC 3339 has them."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._of_worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII: no character of it ends a line for whoever reads it."""
        when = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
        line = {
            "time": f"{when.isoformat(timespec='milliseconds')}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._of_worker,
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, text_format: str = "human", worker: int | None = None) -> None:
    """Log to standard error, from that level on; with the number of a worker of several.

    Python's warnings, and exceptions that nobody caught, are logged too.
    """
    handler = logging.StreamHandler()
    handler.setFormatter((Json if text_format == "json" else Human)(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_died


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _shown(value: object) -> str:
    """A text in quotes where it would not be told from what follows."""
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if text and plain else json.dumps(text)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("unexpected error", exc_info=(kind, error, trace))


def _unraisable(failed: sys.UnraisableHookArgs) -> None:
    text = failed.err_msg or "an exception was ignored in"
    log.error("%s: %r", text, failed.object, exc_info=failed.exc_value)


def _thread_died(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value and not isinstance(failed.exc_value, SystemExit):
        name = failed.thread.name if failed.thread else "?"
        log.error("thread %s died", name, exc_info=failed.exc_value)


def settings() -> Settings:
    """What is logged now, as Triton tells it."""
    return _settings_at(logging.getLogger().getEffectiveLevel())


def _checked(changes: Changes) -> Settings:
    """The changes; InvalidInput names a setting that there is not or that takes no such value.

    `log_file` is refused: a file of the server's is nothing that a request may choose.
    """
    checked: Settings = {}
    for name, value in changes.items():
        wanted = {_VERBOSE: int, **dict.fromkeys(_LEVELS, bool)}.get(name)
        if wanted is None:
            listed = ", ".join((*_LEVELS, _VERBOSE))
            raise InvalidInput(f"log setting {name!r} is not supported; there is {listed}")
        if isinstance(value, str) or type(value) is not wanted:
            raise InvalidInput(f"log setting {name!r}: {value!r} is not {_described(wanted)}")
        checked[name] = value
    return checked


def change(changes: Changes) -> None:
    """Log from another level on; raises InvalidInput where no single level would do."""
    checked = _checked(changes)
    level = _level({**settings(), **checked})
    told = _settings_at(level)
    for name, value in checked.items():
        if told[name] != min(value, 1):
            raise InvalidInput(
                f"log setting {name!r}: {value!r} contradicts the others; the level is one, and"
                " what is more severe than that is logged, too"
            )
    logging.getLogger().setLevel(level)


def _level(wanted: Mapping[str, bool | int]) -> int:
    """The least severe that is on."""
    if wanted[_VERBOSE]:
        return logging.DEBUG
    on = [number for name, number in _LEVELS.items() if wanted[name]]
    return min(on, default=logging.CRITICAL)


def _settings_at(level: int) -> Settings:
    switches: Settings = {name: level <= number for name, number in _LEVELS.items()}
    return {**switches, _VERBOSE: int(level <= logging.DEBUG)}


def _described(kind: type) -> str:
    return "true or false" if kind is bool else "a whole number"
