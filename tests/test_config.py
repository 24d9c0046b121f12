"""Flags, environment and defaults of the server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from serving.config import ServerConfig, VersionPolicy
from serving.options import environment_name, parse


def test_a_flag_wins_over_the_environment_which_wins_over_the_default() -> None:
    environ = {"DIGITS_GRPC_PORT": "1", "DIGITS_METRICS_PORT": "2"}
    config = parse(["--grpc-port", "3"], environ)
    assert (config.grpc_port, config.metrics_port) == (3, 2)
    assert config.max_batch_size == ServerConfig().max_batch_size


def test_every_option_can_be_set_either_way() -> None:
    values = {
        "model_repository": Path("elsewhere"),
        "model_control_mode": "explicit",
        "poll_interval": 0.5,
        "load_model": ("one", "two"),
        "version_policy": "specific:1,3",
        "holdout_tolerance": 0.25,
        "probe_interval": 30.0,
        "drift_window": 60.0,
        "drift_threshold": 0.5,
        "prediction_ids": False,
        "feedback_key_file": Path("key"),
        "replicas": 2,
        "feedback_ttl": 3600.0,
        "feedback_memory": 2048,
        "device": "cpu",
        "precision": "int8",
        "instance_count": 2,
        "intra_op_threads": 3,
        "execution_provider": "cuda",
        "cuda_graphs": True,
        "gpu_memory_limit": 1000,
        "gpu_arena": "next_power_of_two",
        "max_batch_size": 4,
        "max_queue_delay": 0.5,
        "max_queue_size": 6,
        "max_in_flight": 7,
        "batch_buckets": (1, 4),
        "priority_levels": 3,
        "host": "::1",
        "grpc_port": 7,
        "http_port": 9,
        "allow_http": False,
        "transport": "grpcio",
        "metrics_port": 8,
        "triton_metrics": True,
        "max_message_bytes": 9000,
        "max_connection_age": 600.0,
        "max_connection_idle": 60.0,
        "max_connections": 50,
        "stall_timeout": 10.0,
        "tls_certificate": Path("server.pem"),
        "tls_key": Path("server.key"),
        "tls_client_ca": Path("clients.pem"),
        "token_file": Path("tokens"),
        "allow_admin": True,
        "workers": 2,
        "drain_timeout": 10.5,
        "log_level": "debug",
        "log_format": "json",
        "access_log": 100,
        "otlp_endpoint": "http://localhost:4318",
    }
    texts = {name: typed(value) for name, value in values.items()}
    flags = [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]
    environ = {environment_name(name): text for name, text in texts.items()}
    assert dataclasses.asdict(parse(flags, {})) == {**values, "tokens": ""}
    assert dataclasses.asdict(parse([], environ)) == {**values, "tokens": ""}


def test_tokens_are_given_by_the_environment_and_shown_by_nothing() -> None:
    config = parse([], {"DIGITS_TOKENS": "ops admin 0123456789abcdef0123456789abcdef"})
    assert config.tokens == "ops admin 0123456789abcdef0123456789abcdef"
    assert "0123456789abcdef" not in repr(config)
    with pytest.raises(SystemExit) as stopped:
        parse(["--tokens", config.tokens], {})
    assert stopped.value.code == 2


def typed(value: object) -> str:
    """A value as a user would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_a_list_may_be_given_in_several_flags() -> None:
    argv = ["--model-control-mode=explicit", "--load-model", "a", "--load-model", "b,c"]
    assert parse(argv, {"DIGITS_LOAD_MODEL": "d"}).load_model == ("a", "b", "c")


def test_a_switch_needs_no_value_and_a_flag_can_undo_its_variable() -> None:
    assert parse(["--allow-admin"], {}).allow_admin is True
    assert parse(["--allow-admin=no"], {"DIGITS_ALLOW_ADMIN": "1"}).allow_admin is False


def test_a_version_policy_chooses_among_the_published_versions() -> None:
    chosen = {
        text: VersionPolicy.parse(text).select([1, 2, 4, 7])
        for text in ("latest:1", "latest:2", "all", "specific:2,3,7")
    }
    assert chosen == {
        "latest:1": [7],
        "latest:2": [4, 7],
        "all": [1, 2, 4, 7],
        "specific:2,3,7": [2, 7],
    }


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--grpc-port", "65536"], {}, "--grpc-port: 65536 is not between 0 and 65535"),
        (["--max-queue-delay", "nan"], {}, "--max-queue-delay: nan is not between 0 and 10"),
        (["--device", "tpu"], {}, "--device: 'tpu' is not one of auto, cpu, gpu"),
        (["--host", ""], {}, "--host: must not be empty"),
        (["--version-policy", "newest"], {}, "--version-policy: 'newest': expected latest:N, all"),
        (["--version-policy", "latest:0"], {}, "--version-policy: 'latest:0': expected latest:N"),
        (["--version-policy", "latest:x"], {}, "--version-policy: 'latest:x': expected latest:N"),
        (["--allow-admin=maybe"], {}, "--allow-admin: 'maybe' is not true or false"),
        (["--batch-buckets", "1,65"], {}, "--batch-buckets: 65 is beyond --max-batch-size 64"),
        (["--cuda-graphs"], {}, "--cuda-graphs needs --batch-buckets: a graph has one size"),
        (["--otlp-endpoint", "localhost:4318"], {}, "--otlp-endpoint: 'localhost:4318': expected"),
        (["--otlp-endpoint", "http://:4318"], {}, "--otlp-endpoint: 'http://:4318': expected http"),
        (["--otlp-endpoint", "http://a:b"], {}, "--otlp-endpoint: 'http://a:b': expected http"),
        (["--tls-key", "k"], {}, "--tls-certificate and --tls-key need each other"),
        (["--tls-client-ca", "c"], {}, "--tls-client-ca needs --tls-certificate"),
        (["--token-file", "t"], {"DIGITS_TOKENS": "a"}, "--token-file and DIGITS_TOKENS exclude"),
        (["--load-model", "a"], {}, "--load-model needs --model-control-mode explicit"),
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
    assert "DIGITS_TOKENS is the text of a --token-file" in text
    for field in dataclasses.fields(ServerConfig):
        if field.name == "tokens":
            continue
        assert f"--{field.name.replace('_', '-')} " in text
        assert f"; {environment_name(field.name)}]" in text
    assert "[30 seconds; DIGITS_DRAIN_TIMEOUT]" in text
    assert "[2592000 seconds; DIGITS_FEEDBACK_TTL]" in text
    assert "[0.01; DIGITS_HOLDOUT_TOLERANCE]" in text
