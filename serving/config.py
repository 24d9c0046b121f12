"""ServerConfig: every knob of the server, with its default, bounds, unit and help in one place.

Flags and environment names are derived from its fields; nothing else reads the environment.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path

PREFIX = "DIGITS_"


class ConfigError(ValueError):
    """A value that cannot be used; the message names the option."""


def _about(
    group: str,
    text: str,
    *,
    unit: str = "",
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
) -> dict[str, object]:
    return {"group": group, "help": text, "unit": unit, "bounds": bounds, "choices": choices}


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How one server process runs."""

    model_repository: Path = field(
        default=Path("models"),
        metadata=_about("models", "directory of published models; the latest of each is served"),
    )
    precision: str = field(
        default="auto",
        metadata=_about(
            "models",
            "which variant of a model to run; int8 is taken where there is one; auto is fp32",
            choices=("auto", "fp32", "int8"),
        ),
    )
    device: str = field(
        default="auto",
        metadata=_about(
            "models",
            "where models run; gpu refuses to start without CUDA, auto logs what it took",
            choices=("auto", "cpu", "gpu"),
        ),
    )
    instance_count: int = field(
        default=1,
        metadata=_about("models", "batches of one model that run at the same time", bounds=(1, 64)),
    )
    intra_op_threads: int = field(
        default=0,
        metadata=_about(
            "models",
            "threads within one batch; 0 takes what CPU affinity and the cgroup quota allow",
            bounds=(0, 1024),
        ),
    )
    max_batch_size: int = field(
        default=64,
        metadata=_about(
            "batching", "most rows in one execution, and in one request", bounds=(1, 65536)
        ),
    )
    max_queue_delay: float = field(
        default=0.0,
        metadata=_about(
            "batching",
            "how long a batch waits for more requests; 0 runs what is queued when a model is free",
            unit="seconds",
            bounds=(0, 10),
        ),
    )
    max_queue_size: int = field(
        default=256,
        metadata=_about(
            "batching",
            "requests that may wait for one model before more are refused",
            bounds=(1, 4096),
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_about("network", "address to listen on; 0.0.0.0 for every interface"),
    )
    grpc_port: int = field(
        default=8001, metadata=_about("network", "gRPC; 0 for any free port", bounds=(0, 65535))
    )
    metrics_port: int = field(
        default=8002,
        metadata=_about(
            "network", "Prometheus, at /metrics; 0 for any free port", bounds=(0, 65535)
        ),
    )
    max_message_bytes: int = field(
        default=16 * 1024 * 1024,
        metadata=_about(
            "network", "largest request and answer", unit="bytes", bounds=(1024, 2**31 - 1)
        ),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=_about(
            "process",
            "how long requests in flight may take to finish after SIGTERM or SIGINT",
            unit="seconds",
            bounds=(0, 3600),
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about(
            "process", "least severe message to log", choices=("debug", "info", "warning")
        ),
    )


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Flags over environment over defaults; a value at fault is named and exits with status 2."""
    parser = _parser()
    flags = vars(parser.parse_args(argv))
    try:
        return ServerConfig(**_values(flags, environ))
    except ConfigError as error:
        parser.error(str(error))


def environment_name(option: str) -> str:
    """`grpc_port` → `DIGITS_GRPC_PORT`."""
    return PREFIX + option.upper()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        usage="%(prog)s [OPTION ...]",
        description="Serve the models of a repository over gRPC (V2 inference protocol).",
        epilog="A flag wins over its environment variable, which wins over the default.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=98),
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in fields(ServerConfig):
        name = option.metadata["group"]
        group = groups.setdefault(name, parser.add_argument_group(name))
        group.add_argument(_flag(option.name), metavar=_metavar(option), help=_help(option))
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(option: Field[object]) -> str:
    if option.metadata["choices"]:
        return "|".join(option.metadata["choices"])
    if isinstance(option.default, Path):
        return "DIR"
    kinds = {int: "N", float: "SECONDS"}
    return (
        "BYTES" if option.metadata["unit"] == "bytes" else kinds.get(type(option.default), "TEXT")
    )


def _help(option: Field[object]) -> str:
    unit = f" {option.metadata['unit']}" if option.metadata["unit"] else ""
    default = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
    return f"{option.metadata['help']} [{default}{unit}; {environment_name(option.name)}]"


def _values(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> dict[str, typing.Any]:
    """Converted and checked values of the options that were given."""
    values = {}
    for option in fields(ServerConfig):
        variable = environment_name(option.name)
        text = flags[option.name]
        if text is not None:
            values[option.name] = _convert(option, text, _flag(option.name))
        elif variable in environ:
            values[option.name] = _convert(option, environ[variable], variable)
    return values


def _convert(option: Field[typing.Any], text: str, source: str) -> object:
    kind: Callable[[str], typing.Any] = type(option.default)
    try:
        value = kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{source}: {text!r} is not {expected}") from None
    if text == "":
        raise ConfigError(f"{source}: must not be empty")
    choices, bounds = option.metadata["choices"], option.metadata["bounds"]
    if choices and value not in choices:
        raise ConfigError(f"{source}: {text!r} is not one of {', '.join(choices)}")
    if bounds and not bounds[0] <= value <= bounds[1]:
        raise ConfigError(f"{source}: {text} is not between {bounds[0]} and {bounds[1]}")
    return value
