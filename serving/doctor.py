"""``python -m serving doctor``: does this machine serve these models as configured?

Takes the server's options, changes nothing, listens on nothing for longer than a look.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import onnxruntime

import model_repository
from model_repository import RepositoryError
from serving import cpu, device
from serving.config import ServerConfig, VersionPolicy
from serving.device import CPU, CUDA, Runtime, runtime_for
from serving.errors import ModelLoadError, StartupError
from serving.model import load
from serving.observers import spans_class
from serving.options import parse
from serving.prediction_ids import feedback_keys
from serving.tls import ends_soon, tls_files
from serving.tokens import configured

OK, WARN, FAIL = "ok", "warn", "FAIL"
PACKAGES = ("numpy", "grpcio", "protobuf", "prometheus_client")
LANE = "serving.lane.native"  # there where it was built
STALE_SECONDS = 3600.0  # a publisher that has not finished within the hour was killed
LOW_DISK_BYTES = 1 << 30
COLLECTOR_SECONDS = 2.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how it stands, what was looked at, what was found, and what to do about it."""

    status: str
    subject: str
    text: str
    hint: str = ""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the findings; 1 where one of them is a problem."""
    findings = examine(parse(argv, environ), show)
    return 1 if any(finding.status == FAIL for finding in findings) else 0


def show(finding: Finding) -> None:
    """Print one line, and its hint below it."""
    print(f"{finding.status:<5}{finding.subject:<24}{finding.text}", flush=True)
    if finding.hint:
        print(f"{'':<29}{finding.hint}", flush=True)


def examine(
    config: ServerConfig, tell: Callable[[Finding], None] = lambda _: None
) -> list[Finding]:
    """Everything there is to find, telling of each as it is found."""
    runtime, device_findings = _runtime(config)
    parts: list[Iterable[Finding]] = [
        _versions(),
        _distributions(),
        device_findings,
        _processor(config, runtime),
        _lane(config),
        _ports(config),
        _feedback_key(config),
        _tls(config),
        _tokens(config),
        _collector(config),
        _disk(config.model_repository),
        _repository(config, runtime),
    ]
    findings = []
    for part in parts:
        for finding in part:
            tell(finding)
            findings.append(finding)
    return findings


def _versions() -> Iterator[Finding]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions = {"onnxruntime": onnxruntime.__version__, **versions}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding(OK, "versions", f"Python {platform.python_version()}, {text}")


def _distributions() -> Iterator[Finding]:
    try:
        device.check_distributions(device.installed_distributions())
    except StartupError as error:
        yield Finding(FAIL, "onnxruntime", str(error))


def _runtime(config: ServerConfig) -> tuple[Runtime, list[Finding]]:
    """The configured runtime, or a CPU's to go on with, and what there is to say about it."""
    compiled = ", ".join(onnxruntime.get_available_providers())
    findings = [Finding(OK, "providers", f"compiled in: {compiled}")]
    listed = [name for name in onnxruntime.get_available_providers() if name != CPU]
    try:
        runtime = runtime_for(config)
    except StartupError as error:
        findings.append(Finding(FAIL, "device", str(error)))
        return Runtime("cpu", config.precision, cpu.threads_for(config.workers)), findings
    active = "starts" if device.starts(runtime.provider) else "does NOT start"
    status = OK if active == "starts" else FAIL
    findings.append(Finding(status, "device", f"{runtime.device}: {runtime.provider} {active}"))
    if runtime.provider == CPU and CUDA in listed and config.device == "auto":
        hint = "--device gpu refuses to start instead"
        findings.append(Finding(WARN, "silent fallback", f"CPU, as {device.why_no_cuda()}", hint))
    return runtime, findings


def _processor(config: ServerConfig, runtime: Runtime) -> Iterator[Finding]:
    found = cpu.int8_instructions()
    text = ", ".join(found) or "neither VNNI nor AMX: int8 is not faster than fp32 here"
    yield Finding(OK, "int8 instructions", text)
    quota = cpu.cpu_quota()
    allowed = cpu.available_cpus()
    text = (
        f"{runtime.threads} per worker, {config.workers} workers; {allowed} CPUs may be used: "
        f"host {os.cpu_count()}, affinity {len(os.sched_getaffinity(0))}, "
        f"cgroup quota {'none' if quota is None else f'{quota:g}'}"
    )
    if runtime.threads * config.workers > allowed:
        hint = "threads beyond the CPUs wait for each other; 0 for --intra-op-threads shares them"
        yield Finding(WARN, "threads", text, hint)
    else:
        yield Finding(OK, "threads", text)


def _lane(config: ServerConfig) -> Iterator[Finding]:
    """Whether ModelInfer can be answered in C++, by this interpreter, where that is wanted."""
    needed = config.transport == "native"
    try:
        importlib.import_module(LANE)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == LANE
        instead = "--transport native needs it" if needed else "grpcio answers ModelInfer"
        text = f"not built: {instead}" if absent else f"built, but {error}"
        hint = f"{sys.executable} -m serving.lane.build builds it, or says what that takes"
        yield Finding(FAIL if needed else WARN, "native lane", text, hint)
    else:
        yield Finding(OK, "native lane", "built")


def _ports(config: ServerConfig) -> Iterator[Finding]:
    flags = {"--grpc-port": config.grpc_port, "--metrics-port": config.metrics_port}
    if config.allow_http:
        flags["--http-port"] = config.http_port
    for flag, port in flags.items():
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                config.host, port, type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            hint = f"stop what listens there (ss -ltnp), or choose another {flag}"
            yield Finding(FAIL, flag, f"{config.host}:{port}: {error.strerror}", hint)
        else:
            yield Finding(OK, flag, f"{config.host}:{port} is free")


def _feedback_key(config: ServerConfig) -> Iterator[Finding]:
    subject = "--feedback-key-file"
    if config.feedback_key_file is None:
        text = "none: drawn at each start"
        yield Finding(OK, subject, f"{text}, and feedback on older predictions is refused")
        return
    try:
        keys = feedback_keys(config.feedback_key_file)
    except StartupError as error:
        hint = "python -c 'import secrets; print(secrets.token_hex(32))' makes a secret"
        yield Finding(FAIL, subject, str(error).removeprefix(f"{subject}: "), hint)
    else:
        yield Finding(OK, subject, f"{config.feedback_key_file}: {len(keys)} secrets")


def _tls(config: ServerConfig) -> Iterator[Finding]:
    """Whether the files of TLS are good; nothing where it is off."""
    subject = "--tls-certificate"
    try:
        files = tls_files(config)
    except StartupError as error:
        subject, _, text = str(error).partition(": ")
        yield Finding(FAIL, subject, text)
        return
    if files:
        clients = "clients show one, too" if files.client_ca else "clients show none"
        yield Finding(OK, subject, f"{config.tls_certificate}: with its key; {clients}")
        if ends := ends_soon(files.certificate):
            yield Finding(WARN, subject, f"{config.tls_certificate}: {ends}", "renew it")


def _tokens(config: ServerConfig) -> Iterator[Finding]:
    """Whose calls are answered, and whether their tokens can be overheard."""
    try:
        source = configured(config)
    except StartupError as error:
        subject, _, text = str(error).partition(": ")
        yield Finding(FAIL, subject, text)
        return
    if source is None:
        return
    subject = "--token-file" if config.token_file else "DIGITS_TOKENS"
    text = f"tokens of {', '.join(each.name for each in source.grants)}"
    if config.tls_certificate or config.host in LOOPBACK:
        yield Finding(OK, subject, text)
    else:
        hint = "whoever sees the traffic can use them: --tls-certificate"
        yield Finding(WARN, subject, f"{text}, sent in plain text", hint)


def _collector(config: ServerConfig) -> Iterator[Finding]:
    """What sends spans, and whether somebody listens where they go; nothing where none are sent."""
    subject, endpoint = "--otlp-endpoint", config.otlp_endpoint
    if not endpoint:
        return
    try:
        spans_class()
    except StartupError as error:
        yield Finding(FAIL, subject, str(error).removeprefix(f"{subject} "))
        return
    url = urlsplit(endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), COLLECTOR_SECONDS).close()
    except OSError as error:
        hint = "requests are answered all the same; their spans are dropped"
        yield Finding(WARN, subject, f"{endpoint}: {error.strerror or error}", hint)
    else:
        yield Finding(OK, subject, f"{endpoint} takes connections")


def _disk(repository: Path) -> Iterator[Finding]:
    if not repository.is_dir():
        return
    free = shutil.disk_usage(repository).free
    text = f"{free / 2**30:.1f} GiB free where the models are"
    if free < LOW_DISK_BYTES:
        yield Finding(WARN, "disk", text, "publishing writes a version before it replaces one")
    else:
        yield Finding(OK, "disk", text)
    now = time.time()
    for path in sorted(repository.glob(".staging-*")):
        age = now - path.stat().st_mtime
        if age > STALE_SECONDS:
            text = f"{path}: {age / 3600:.0f} hours old"
            yield Finding(WARN, "stale staging", text, f"a publisher was killed; rm -r {path}")


def _repository(config: ServerConfig, runtime: Runtime) -> Iterator[Finding]:
    try:
        names = model_repository.model_names(config.model_repository)
    except RepositoryError as error:
        yield Finding(FAIL, "model repository", str(error), "python -m training publishes models")
        return
    if not names:
        text = f"{config.model_repository}: holds no published model"
        yield Finding(FAIL, "model repository", text, "python -m training publishes models")
    policy = VersionPolicy.parse(config.version_policy)
    for name in names:
        versions = model_repository.versions(config.model_repository / name)
        served = policy.select(versions)
        for version in versions:
            directory = config.model_repository / name / str(version)
            yield _version(directory, f"{name}/{version}", version in served, runtime)


def _version(directory: Path, subject: str, served: bool, runtime: Runtime) -> Finding:
    """Every version's hashes; those that the policy selects are loaded and proven, too."""
    if found := model_repository.faults(directory):
        hint = "publish it anew, or take it away"
        return Finding(FAIL if served else WARN, subject, "; ".join(found), hint)
    if not served:
        return Finding(OK, subject, "hashes match; not served by --version-policy")
    try:
        manifest = model_repository.read_manifest(directory)
        model = load(directory, manifest, runtime)
    except (ModelLoadError, RepositoryError) as error:
        return Finding(FAIL, subject, str(error))
    notes = "".join(f"; {note}" for note in model.notes)
    text = f"{model.variant.precision} on {model.provider}, loaded in {model.load_seconds:.2f} s"
    return Finding(OK, subject, text + notes)
