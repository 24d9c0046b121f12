"""Flags and environment: a configuration within its bounds, or exit status 2 and one message.

A case is JSON: a list of arguments and an object of variables. The system hands over bytes, which
Python decodes with halves of surrogate pairs where they are no UTF-8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random

from benchmarks.fuzz import damage
from benchmarks.fuzz.running import Target, Wrong
from serving.config import ServerConfig
from serving.options import environment_name, parse

OPTIONS = dataclasses.fields(ServerConfig)
FLAGS = [f"--{option.name.replace('_', '-')}" for option in OPTIONS]
VARIABLES = [environment_name(option.name) for option in OPTIONS]
WORDS = (
    *sorted({choice for option in OPTIONS for choice in option.metadata["choices"]}),
    *("true", "FALSE", "1", "0", "", " ", ",", "-", "--", "nan", "-inf", "1e999", "1_0", "0x10"),
    *("latest:1", "latest:" + "9" * 5000, "all", "specific:1,2", "specific:" + "9" * 5000, "٣"),
    *("http://[", "http://h:99999", "https://u:p@h:1/\x7f", "http://\u2100:1", "%s", "@file"),
    "\udcff",
)  # fmt: skip


def _value(draw: Random) -> str:
    kind = draw.random()
    if kind < 0.3:
        return str(damage.whole(draw))
    if kind < 0.4:
        return str(draw.choice(damage.FRACTIONS))
    if kind < 0.5:
        return ",".join(_value(draw) for _ in range(draw.randrange(4)))
    text = damage.text(draw, WORDS).replace("\0", "")
    if kind < 0.9:
        return text
    damaged = damage.bytes_of(draw, text.encode(errors="surrogateescape"))
    return damaged.replace(b"\0", b"").decode(errors="surrogateescape")


def _argument(draw: Random) -> str:
    flag, kind = draw.choice(FLAGS), draw.random()
    if kind < 0.7:
        return f"{flag}={_value(draw)}"
    return draw.choice((flag, flag[:-1], _value(draw)))


class Configurations:
    """The target."""

    def case(self, draw: Random) -> bytes:
        """One more command line and environment."""
        argv = [_argument(draw) for _ in range(draw.choice((0, 1, 1, 2, 5)))]
        names = draw.sample(VARIABLES, draw.choice((0, 1, 1, 3)))
        return json.dumps([argv, {name: _value(draw) for name in names}]).encode()

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """One after the other."""
        return [_judge(case) for case in cases]


def _judge(case: bytes) -> str:
    argv, environ = json.loads(case)
    try:
        return "refused" if said_of(argv, environ) else "taken"
    except AssertionError as error:
        raise Wrong(f"{error}", case) from error


def said_of(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """What was said of a configuration that was refused, after the usage; empty for a sound one.

    AssertionError where it was neither.
    """
    said, shown = io.StringIO(), io.StringIO()
    status: object = None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            _require_sound(parse(argv, environ))
        except SystemExit as stopped:
            status = stopped.code
    if status is None or shown.getvalue():  # the help, which -h asks for
        _require(not status, f"status {status}")
        return ""
    usage, error, message = said.getvalue().partition("error: ")
    _require(status == 2, f"status {status}")
    _require(usage.startswith("usage: python -m serving") and bool(error), said.getvalue())
    return message


def _require_sound(config: ServerConfig) -> None:
    """Within its bounds, whatever was asked for."""
    for option in OPTIONS:
        value = getattr(config, option.name)
        bounds, choices = option.metadata["bounds"], option.metadata["choices"]
        for each in value if isinstance(value, tuple) else (value,):
            told = f"{option.name} is {each!r}"
            _require(not choices or each in choices, told)
            _require(not bounds or bounds[0] <= each <= bounds[1], told)
            _require(not isinstance(each, float) or math.isfinite(each), told)


def _require(true: bool, told: str) -> None:
    if not true:
        raise AssertionError(told)


@contextmanager
def opened() -> Iterator[Target]:
    """Needs no server."""
    yield Configurations()
