"""`python -m serving doctor` finds what would keep a server from serving well, and says so."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, Digits, publish_classifier

from serving import device
from serving.config import ServerConfig
from serving.cpu import available_cpus
from serving.doctor import FAIL, OK, WARN, Finding, examine, main

FREE = ["--grpc-port", "0", "--metrics-port", "0", "--http-port", "0"]


def config_of(repository: Path, **changes: object) -> ServerConfig:
    values: dict[str, object] = {"model_repository": repository, "grpc_port": 0, "metrics_port": 0}
    values["http_port"] = 0
    return ServerConfig(**{**values, **changes})  # type: ignore[arg-type]


def found(config: ServerConfig) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(config)}


def test_a_healthy_repository_is_found_healthy(repository: Path) -> None:
    findings = found(config_of(repository, device="cpu", precision="fp32"))
    lane = findings.pop("native lane")  # built where there is a compiler
    assert {finding.status for finding in findings.values()} == {OK}
    assert lane.status == (OK if lane.text == "built" else WARN)
    assert findings["classifier/1"].text.startswith("fp32 on CPUExecutionProvider, loaded in ")
    assert findings["device"].text == "cpu: CPUExecutionProvider starts"
    assert {"echo/1", "echo_fixed/1", "--grpc-port", "threads", "disk"} <= set(findings)


def test_the_command_prints_a_line_for_each_and_exits_with_0(repository: Path) -> None:
    command = [sys.executable, "-m", "serving", "doctor", *FREE]
    command += ["--model-repository", str(repository)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    subjects = [line.split()[1] for line in result.stdout.splitlines() if line[:2] in ("ok", "wa")]
    assert subjects[:3] == ["versions", "providers", "device"]
    assert subjects[-3:] == ["classifier/1", "echo/1", "echo_fixed/1"]


def copied_package(directory: Path) -> None:
    """The server as it is where nobody compiled anything."""
    for each in ROOT.glob("*.py"):
        shutil.copy(each, directory)
    shutil.copytree(ROOT / "serving", directory / "serving", ignore=shutil.ignore_patterns("*.so"))


def told_of_the_lane(directory: Path, transport: str) -> list[str]:
    """The doctor's line about the lane, and the hint below it."""
    command = [sys.executable, "-W", "ignore", "-m", "serving", "doctor", *FREE]
    command += ["--transport", transport, "--model-repository", str(directory)]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    first = next(number for number, line in enumerate(lines) if "native lane" in line)
    return lines[first : first + 2]


BUILDS_IT = f"{sys.executable} -m serving.lane.build builds it, or says what that takes"


def test_a_lane_that_is_not_built_is_told_with_the_command_that_builds_it(tmp_path: Path) -> None:
    copied_package(tmp_path)
    told = ["warn native lane not built: grpcio answers ModelInfer", BUILDS_IT]
    assert told_of_the_lane(tmp_path, "auto") == told


def test_a_lane_that_is_wanted_and_not_built_is_a_problem(tmp_path: Path) -> None:
    copied_package(tmp_path)
    told = ["FAIL native lane not built: --transport native needs it", BUILDS_IT]
    assert told_of_the_lane(tmp_path, "native") == told


@pytest.mark.parametrize(("transport", "status"), [("auto", "warn"), ("native", "FAIL")])
def test_a_lane_that_was_built_for_another_machine_is_told(
    tmp_path: Path, transport: str, status: str
) -> None:
    copied_package(tmp_path)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / "serving" / "lane" / f"native{suffix}").write_bytes(b"no library")
    line, _ = told_of_the_lane(tmp_path, transport)
    assert line.startswith(f"{status} native lane built, but ")
    assert line.endswith("file too short")


def test_onnx_runtime_keeps_no_identity_to_report_to_its_maker(
    repository: Path, tmp_path: Path
) -> None:
    """Its builds for Linux make up one, in the home directory, where they are to report."""
    command = [sys.executable, "-m", "serving", "doctor", "--model-repository", str(repository)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    subprocess.run(command, check=False, cwd=ROOT, env=environ, stdout=subprocess.PIPE, timeout=60)
    assert list(tmp_path.rglob("*")) == []


def test_tokens_are_named_and_a_file_that_is_no_good_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"ops admin {'0123456789abcdef' * 2}\n")
    here = found(config_of(tmp_path, token_file=file))["--token-file"]
    assert (here.status, here.text) == (OK, "tokens of ops")
    open_to_all = found(config_of(tmp_path, token_file=file, host="0.0.0.0"))["--token-file"]
    assert (open_to_all.status, open_to_all.text) == (WARN, "tokens of ops, sent in plain text")
    file.write_text("ops admin short")
    bad = found(config_of(tmp_path, token_file=file))["--token-file"]
    assert (bad.status, "line 1 has a token of 5 characters" in bad.text) == (FAIL, True)


def test_a_damaged_version_is_a_problem_if_it_would_be_served(
    tmp_path: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        directory = publish_classifier(tmp_path, digits)
    (directory / "model.onnx").write_bytes(b"torn")
    flags = ["--model-repository", str(tmp_path), "--device", "cpu", *FREE]
    assert main(flags, {}) == 1
    line = next(x for x in capsys.readouterr().out.splitlines() if "classifier/2" in x)
    assert line.startswith(FAIL)
    assert "sha256 is" in line
    assert main([*flags, "--version-policy", "specific:1"], {}) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if "classifier/" in line][:2] == [OK, WARN]


def test_a_version_that_hashes_right_but_does_not_load_is_a_problem(
    tmp_path: Path, digits: Digits
) -> None:
    directory = publish_classifier(tmp_path, digits)
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"UINT8"', '"FP32"'))
    finding = found(config_of(tmp_path))["classifier/1"]
    assert finding.status == FAIL
    assert "the manifest says {'images': ('FP32', (-1, 28, 28))}" in finding.text


def test_a_port_that_is_taken_is_a_problem_and_the_hint_names_the_flag(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = found(config_of(repository, grpc_port=port))["--grpc-port"]
    assert finding.status == FAIL
    assert finding.text == f"127.0.0.1:{port}: Address already in use"
    assert "--grpc-port" in finding.hint


def test_a_repository_that_is_missing_or_empty_is_a_problem(tmp_path: Path) -> None:
    missing = found(config_of(tmp_path / "none"))["model repository"]
    empty = found(config_of(tmp_path))["model repository"]
    assert (missing.status, empty.status) == (FAIL, FAIL)
    assert missing.text.endswith("no such model repository")
    assert empty.text.endswith("holds no published model")


def test_what_a_killed_publisher_left_is_pointed_out(repository: Path, tmp_path: Path) -> None:
    for name, hours in ((".staging-old", 5), (".staging-new", 0)):
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - hours * 3600
        os.utime(tmp_path / name, (then, then))
    findings = [f for f in examine(config_of(tmp_path)) if f.subject == "stale staging"]
    assert [(f.status, f.text) for f in findings] == [
        (WARN, f"{tmp_path / '.staging-old'}: 5 hours old")
    ]


def test_more_threads_than_cpus_are_pointed_out(repository: Path) -> None:
    finding = found(config_of(repository, intra_op_threads=available_cpus() + 1))["threads"]
    assert finding.status == WARN
    assert "--intra-op-threads" in finding.hint


def test_a_gpu_that_was_asked_for_and_is_not_there_is_a_problem(repository: Path) -> None:
    finding = found(config_of(repository, device="gpu"))["device"]
    assert finding.status == (OK if device.why_no_cuda() is None else FAIL)
    assert finding.status == OK or finding.text.startswith("--device gpu: ")


def test_a_feedback_key_that_cannot_be_used_is_a_problem(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "key"
    missing = found(config_of(repository, feedback_key_file=path))["--feedback-key-file"]
    path.write_text("too short\n")
    short = found(config_of(repository, feedback_key_file=path))["--feedback-key-file"]
    path.write_text("the one that signs\nand the one before it\n")
    good = found(config_of(repository, feedback_key_file=path))["--feedback-key-file"]
    assert (missing.status, missing.text) == (FAIL, f"{path}: No such file or directory")
    assert (short.status, good.status) == (FAIL, OK)
    assert short.text == f"{path}: line 1 has 9 bytes, a secret at least 16"
    assert good.text == f"{path}: 2 secrets"


def test_a_collector_that_is_away_is_pointed_out(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        there = found(config_of(repository, otlp_endpoint=endpoint))["--otlp-endpoint"]
    away = found(config_of(repository, otlp_endpoint=endpoint))["--otlp-endpoint"]
    assert (there.status, there.text) == (OK, f"{endpoint} takes connections")
    assert (away.status, away.text) == (WARN, f"{endpoint}: Connection refused")
    assert "--otlp-endpoint" not in found(config_of(repository))


def test_spans_without_the_extra_are_a_problem(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('none here')\n")
    command = [sys.executable, "-m", "serving", "doctor", *FREE]
    command += ["--model-repository", str(repository), "--otlp-endpoint", "http://localhost:4318"]
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "--otlp-endpoint" in line]
    assert line.startswith(FAIL)
    assert line.endswith("needs the tracing extra, pip install 'digits[tracing]': none here")
