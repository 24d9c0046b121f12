"""Flags, environment and defaults of the server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from serving.config import ServerConfig, environment_name, parse


def test_a_flag_wins_over_the_environment_which_wins_over_the_default() -> None:
    environ = {"DIGITS_GRPC_PORT": "1", "DIGITS_METRICS_PORT": "2"}
    config = parse(["--grpc-port", "3"], environ)
    assert (config.grpc_port, config.metrics_port) == (3, 2)
    assert config.max_batch_size == ServerConfig().max_batch_size


def test_every_option_can_be_set_either_way() -> None:
    values = {
        "model_repository": Path("elsewhere"),
        "precision": "int8",
        "device": "cpu",
        "instance_count": 2,
        "intra_op_threads": 3,
        "max_batch_size": 4,
        "max_queue_delay": 0.5,
        "max_queue_size": 6,
        "host": "::1",
        "grpc_port": 7,
        "metrics_port": 8,
        "max_message_bytes": 9000,
        "drain_timeout": 10.5,
        "log_level": "debug",
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    environ = {environment_name(name): str(value) for name, value in values.items()}
    assert dataclasses.asdict(parse(flags, {})) == values
    assert dataclasses.asdict(parse([], environ)) == values


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--grpc-port", "65536"], {}, "--grpc-port: 65536 is not between 0 and 65535"),
        (["--max-queue-delay", "nan"], {}, "--max-queue-delay: nan is not between 0 and 10"),
        (["--device", "tpu"], {}, "--device: 'tpu' is not one of auto, cpu, gpu"),
        (["--host", ""], {}, "--host: must not be empty"),
        ([], {"DIGITS_MAX_BATCH_SIZE": "1.5"}, "DIGITS_MAX_BATCH_SIZE: '1.5' is not a whole"),
        ([], {"DIGITS_DRAIN_TIMEOUT": "soon"}, "DIGITS_DRAIN_TIMEOUT: 'soon' is not a number"),
    ],
)
def test_a_bad_value_is_named_and_exits_with_status_2(
    argv: list[str],
    environ: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(argv, environ)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_option_with_its_default_and_environment_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"], {})
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(ServerConfig):
        assert f"--{field.name.replace('_', '-')} " in text
        assert f"; {environment_name(field.name)}]" in text
    assert "[30 seconds; DIGITS_DRAIN_TIMEOUT]" in text
