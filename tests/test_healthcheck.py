"""``python -m serving healthcheck``, which container runtimes call."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Digits, publish_classifier
from test_server import Serve

from serving import healthcheck


def test_it_asks_the_server_that_the_same_settings_start(
    serve: Serve, tmp_path: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_classifier(tmp_path, digits)
    with serve(tmp_path) as own:
        port = str(own.server.grpc_port)
        environ = {"DIGITS_GRPC_PORT": port, "DIGITS_HOST": "0.0.0.0"}
        for service in ("readiness", "startup", "classifier"):
            assert healthcheck.main(["--service", service], environ) == 0
        assert capsys.readouterr().out == "SERVING\n" * 3
        assert healthcheck.main(["--service", "nosuch", "--grpc-port", port], {}) == 1
        assert "NOT_FOUND: service 'nosuch' is unknown" in capsys.readouterr().err
    assert healthcheck.main(["--grpc-port", port], {}) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_an_empty_repository_has_started_but_is_not_ready(
    serve: Serve, tmp_path: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_classifier(tmp_path, digits)
    with serve(tmp_path, model_control_mode="none", version_policy="specific:9") as own:
        port = str(own.server.grpc_port)
        assert healthcheck.main(["--service", "startup", "--grpc-port", port], {}) == 0
        assert healthcheck.main(["--grpc-port", port], {}) == 1
        assert capsys.readouterr().err == "NOT_SERVING\n"
