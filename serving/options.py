"""Flags and environment → ServerConfig, derived from its fields; nothing else reads either."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from serving.config import ServerConfig

PREFIX = "DIGITS_"
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class ConfigError(ValueError):
    """A value that cannot be used; the message names the option."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Flags over environment over defaults; a value at fault is named and exits with status 2."""
    parser = _parser()
    flags = vars(parser.parse_args(argv))
    try:
        return _consistent(ServerConfig(**_values(flags, environ)))
    except ConfigError as error:
        parser.error(str(error))


def environment_name(option: str) -> str:
    """`grpc_port` → `DIGITS_GRPC_PORT`."""
    return PREFIX + option.upper()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        usage="%(prog)s [OPTION ...]",
        description="Serve the models of a repository over gRPC and HTTP (V2 inference protocol).",
        epilog="A flag wins over its environment variable, which wins over the default."
        f" {_secrets()}"
        " `python -m serving doctor [OPTION ...]` checks this machine and the repository,"
        " `python -m serving healthcheck [OPTION ...]` asks a running server.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=98),
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in fields(ServerConfig):
        if option.metadata["secret"]:
            continue
        name = option.metadata["group"]
        group = groups.setdefault(name, parser.add_argument_group(name))
        # A switch may be given a value, --allow-admin=false, so that a flag can undo a variable.
        more: dict[str, Any] = {}
        if isinstance(option.default, bool):
            more = {"nargs": "?", "const": "true"}
        elif isinstance(option.default, tuple):  # --load-model a --load-model b, as in Triton
            more = {"action": "append"}
        group.add_argument(_flag(option.name), metavar=_metavar(option), help=_help(option), **more)
    return parser


def _consistent(config: ServerConfig) -> ServerConfig:
    """The config, unless two of its values contradict each other."""
    beyond = [size for size in config.batch_buckets if size > config.max_batch_size]
    if beyond:
        raise ConfigError(
            f"--batch-buckets: {beyond[0]} is beyond --max-batch-size {config.max_batch_size}"
        )
    if config.cuda_graphs and not config.batch_buckets:
        raise ConfigError("--cuda-graphs needs --batch-buckets: a graph has one size")
    if config.replicas > 1 and config.feedback_key_file is None:
        raise ConfigError("--replicas above 1 needs --feedback-key-file, the same for all of them")
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ConfigError("--tls-certificate and --tls-key need each other")
    if config.tls_client_ca is not None and config.tls_certificate is None:
        raise ConfigError("--tls-client-ca needs --tls-certificate")
    if config.token_file is not None and config.tokens:
        raise ConfigError("--token-file and DIGITS_TOKENS exclude each other")
    if config.load_model and config.model_control_mode != "explicit":
        raise ConfigError("--load-model needs --model-control-mode explicit")
    return config


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(option: Field[Any]) -> str:
    if option.metadata["choices"]:
        return "|".join(option.metadata["choices"])
    if option.metadata["unit"]:
        return str(option.metadata["unit"]).upper()
    if option.default is None:
        return "FILE"
    names = {Path: "DIR", bool: "true|false", int: "N", float: "SHARE", tuple: "LIST"}
    return next((n for kind, n in names.items() if isinstance(option.default, kind)), "TEXT")


def _help(option: Field[Any]) -> str:
    unit = f" {option.metadata['unit']}" if option.metadata["unit"] else ""
    default = f"{_shown(option.default)}{unit}"
    return f"{option.metadata['help']} [{default}; {environment_name(option.name)}]"


def _secrets() -> str:
    """What only the environment tells."""
    secret = [each for each in fields(ServerConfig) if each.metadata["secret"]]
    told = (f"{environment_name(each.name)} is {each.metadata['help']}" for each in secret)
    return f"In the environment only: {'; '.join(told)}."


def _shown(value: object) -> str:
    """A value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if value is None or value == "":
        return "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _values(
    flags: Mapping[str, str | list[str] | None], environ: Mapping[str, str]
) -> dict[str, Any]:
    """Converted and checked values of the options that were given."""
    values = {}
    kinds = get_type_hints(ServerConfig)
    for option in fields(ServerConfig):
        variable = environment_name(option.name)
        text = flags.get(option.name)
        if isinstance(text, list):
            if not all(
                isinstance(each, str) for each in text
            ):  # what argparse makes of --option=-- before Python 3.13
                raise ConfigError(f"{_flag(option.name)}: -- is no value")
            text = ",".join(text)
        if text is not None:
            values[option.name] = _convert(option, kinds[option.name], text, _flag(option.name))
        elif variable in environ:
            values[option.name] = _convert(option, kinds[option.name], environ[variable], variable)
    return values


def _convert(option: Field[Any], kind: Any, text: str, source: str) -> object:
    """The text as the field's type, within its choices and bounds; ConfigError names the source."""
    if get_origin(kind) is tuple:
        items = [item.strip() for item in text.split(",") if item.strip()]
        return tuple(_convert_one(option, get_args(kind)[0], item, source) for item in items)
    if text == "":
        raise ConfigError(f"{source}: must not be empty")
    if get_origin(kind) is UnionType:  # X | None
        kind = get_args(kind)[0]
    return _convert_one(option, kind, text, source)


def _convert_one(option: Field[Any], kind: Any, text: str, source: str) -> object:
    try:
        value = _BOOLS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        expected = {int: "a whole number", bool: "true or false"}.get(kind, "a number")
        raise ConfigError(f"{source}: {text!r} is not {expected}") from None
    choices, bounds = option.metadata["choices"], option.metadata["bounds"]
    if choices and value not in choices:
        raise ConfigError(f"{source}: {text!r} is not one of {', '.join(choices)}")
    if bounds and not bounds[0] <= value <= bounds[1]:
        raise ConfigError(f"{source}: {text} is not between {bounds[0]} and {bounds[1]}")
    if option.metadata["check"]:
        try:
            option.metadata["check"](value)
        except ValueError as error:
            raise ConfigError(f"{source}: {text!r}: {error}") from None
    return value
