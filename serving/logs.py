"""The log: its format and level at the start, and Triton's log settings while it runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from serving.errors import InvalidInput

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_VERBOSE = "log_verbose_level"

Settings = dict[str, bool | int | str]


def configure(level: str, worker: int | None = None) -> None:
    """Log to standard error, from that level on; with the number of a worker of several."""
    text = _FORMAT if worker is None else _FORMAT.replace("%(name)s", f"%(name)s[{worker}]")
    logging.basicConfig(level=level.upper(), format=text)


def settings() -> Settings:
    """What is logged now, as Triton tells it."""
    level = logging.getLogger().getEffectiveLevel()
    switches: Settings = {name: level <= number for name, number in _LEVELS.items()}
    return {**switches, _VERBOSE: int(level <= logging.DEBUG)}


def check(changes: Mapping[str, bool | int | str]) -> None:
    """Raise InvalidInput, naming it, for a setting that there is not or that takes no such value.

    `log_file` is refused: a file of the server's is nothing that a request may choose.
    """
    for name, value in changes.items():
        wanted = {_VERBOSE: int, **dict.fromkeys(_LEVELS, bool)}.get(name)
        if wanted is None:
            listed = ", ".join((*_LEVELS, _VERBOSE))
            raise InvalidInput(f"log setting {name!r} is not supported; there is {listed}")
        if type(value) is not wanted:
            raise InvalidInput(f"log setting {name!r}: {value!r} is not {_described(wanted)}")


def change(changes: Mapping[str, bool | int | str]) -> None:
    """Log from another level on. The level is one: what is less severe than it is off."""
    check(changes)
    now = {**settings(), **changes}
    if now[_VERBOSE]:
        level = logging.DEBUG
    else:
        on = [number for name, number in _LEVELS.items() if now[name]]
        level = min(on, default=logging.CRITICAL)
    logging.getLogger().setLevel(level)


def _described(kind: type) -> str:
    return "true or false" if kind is bool else "a whole number"
