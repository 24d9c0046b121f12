"""The log: its format and level at the start, and Triton's log settings while it runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from serving.errors import InvalidInput

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_VERBOSE = "log_verbose_level"

Settings = dict[str, bool | int]
Changes = Mapping[str, bool | int | str]


def configure(level: str, worker: int | None = None) -> None:
    """Log to standard error, from that level on; with the number of a worker of several."""
    text = _FORMAT if worker is None else _FORMAT.replace("%(name)s", f"%(name)s[{worker}]")
    logging.basicConfig(level=level.upper(), format=text)


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
