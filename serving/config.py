"""ServerConfig: every knob of the server, with its default, bounds, unit and help in one place.

`options` derives flags and environment names from its fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


def _about(
    group: str,
    text: str,
    *,
    unit: str = "",
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[str], object] | None = None,
    secret: bool = False,
) -> dict[str, object]:
    """What an option's field carries; `check` raises ValueError for a text it cannot take. What is
    `secret` comes by the environment only, as everybody can read a process's arguments."""
    return {
        "group": group,
        "help": text,
        "unit": unit,
        "bounds": bounds,
        "choices": choices,
        "check": check,
        "secret": secret,
    }


def _require_http(url: str) -> None:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets without an IPv6 address, or a port that is none
        right = False
    if not right or re.search(r"\s", url):
        raise ValueError("expected http://HOST:PORT or https://HOST:PORT")


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions to serve: the `latest` so many, or the `specific` ones, or all
    (Triton's version_policy)."""

    latest: int | None = None
    specific: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """ "latest:N", "all" or "specific:V,V,..."; ValueError for anything else."""
        if text == "all":
            return cls()
        if match := re.fullmatch(r"latest:([1-9][0-9]*)", text):
            return cls(latest=int(match[1]))
        if re.fullmatch(r"specific:[1-9][0-9]*(,[1-9][0-9]*)*", text):
            return cls(specific=tuple(int(item) for item in text.split(":")[1].split(",")))
        raise ValueError("expected latest:N, all or specific:V,V,...")

    def select(self, versions: Sequence[int]) -> list[int]:
        """Those of the ascending versions that are to be served."""
        if self.specific is not None:
            return [version for version in versions if version in self.specific]
        return list(versions if self.latest is None else versions[-self.latest :])


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How one server process runs."""

    model_repository: Path = field(
        default=Path("models"),
        metadata=_about("models", "directory of published models"),
    )
    model_control_mode: str = field(
        default="poll",
        metadata=_about(
            "models",
            "poll serves what is published meanwhile; explicit loads and unloads by RPC only, from"
            " --load-model at the start; none serves what is there at the start",
            choices=("poll", "explicit", "none"),
        ),
    )
    poll_interval: float = field(
        default=2.0,
        metadata=_about(
            "models", "how often poll looks for changes", unit="seconds", bounds=(0.05, 3600)
        ),
    )
    load_model: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "models", "models that explicit loads at the start, with commas between; * is all"
        ),
    )
    version_policy: str = field(
        default="latest:1",
        metadata=_about(
            "models",
            "versions of each model to serve: latest:N, all, or specific:V,V,...",
            check=VersionPolicy.parse,
        ),
    )
    holdout_tolerance: float = field(
        default=0.01,
        metadata=_about(
            "models",
            "how far a version's accuracy on its holdout images may lie below what its manifest"
            " says before it is refused",
            bounds=(0, 1),
        ),
    )
    probe_interval: float = field(
        default=60.0,
        metadata=_about(
            "quality",
            "how often each version answers its holdout images again, through the batcher; one that"
            " falls below what its manifest says is not ready until it does not; 0 never",
            unit="seconds",
            bounds=(0, 86400),
        ),
    )
    drift_window: float = field(
        default=600.0,
        metadata=_about(
            "quality",
            "how far back drift and estimated accuracy look",
            unit="seconds",
            bounds=(1, 7 * 86400),
        ),
    )
    drift_threshold: float = field(
        default=0.25,
        metadata=_about(
            "quality",
            "population stability index from which a version's input counts as drifted, and its"
            " estimated accuracy as unreliable",
            bounds=(0.01, 10),
        ),
    )
    prediction_ids: bool = field(
        default=True,
        metadata=_about(
            "quality",
            "answer with an id for each row, that its true label can be sent for; false saves 2 µs"
            " and 65 bytes a row, and takes labels for other servers' ids only",
        ),
    )
    feedback_key_file: Path | None = field(
        default=None,
        metadata=_about(
            "quality",
            "file with the secret that signs prediction ids, at least 16 bytes a line: the first"
            " line signs, all are accepted; without it each start draws its own, and feedback on"
            " older predictions is refused",
        ),
    )
    replicas: int = field(
        default=1,
        metadata=_about(
            "quality",
            "servers behind one address; more than one need the same --feedback-key-file",
            bounds=(1, 65536),
        ),
    )
    feedback_ttl: float = field(
        default=30 * 86400.0,
        metadata=_about(
            "quality",
            "age of a prediction from which its feedback is refused",
            unit="seconds",
            bounds=(1, 3650 * 86400),
        ),
    )
    feedback_memory: int = field(
        default=1 << 20,
        metadata=_about(
            "quality",
            "prediction ids to remember, so that each is counted once; 8 bytes each, in all workers"
            " together, taken at the start in /dev/shm where there is one; the oldest are forgotten"
            " first",
            bounds=(1024, 1 << 30),
        ),
    )
    device: str = field(
        default="auto",
        metadata=_about(
            "device",
            "where models run; gpu refuses to start without CUDA, auto logs what it took",
            choices=("auto", "cpu", "gpu"),
        ),
    )
    precision: str = field(
        default="auto",
        metadata=_about(
            "device",
            "which variant of a model to run, fp32 where it has no such; auto takes int8 on a CPU"
            " with VNNI or AMX if it passes the holdout and is faster there, else fp32; tf32 is"
            " fp32 with TensorFloat-32 allowed",
            choices=("auto", "fp32", "tf32", "fp16", "int8"),
        ),
    )
    instance_count: int = field(
        default=1,
        metadata=_about("device", "batches of one model that run at the same time", bounds=(1, 64)),
    )
    intra_op_threads: int = field(
        default=0,
        metadata=_about(
            "device",
            "threads within one batch; 0 shares what CPU affinity and the cgroup quota allow among"
            " the workers",
            bounds=(0, 1024),
        ),
    )
    execution_provider: str = field(
        default="auto",
        metadata=_about(
            "device",
            "on a GPU: auto takes TensorRT where it is installed and --precision is tf32 or fp16,"
            " else CUDA; TensorRT cannot be kept from TensorFloat-32",
            choices=("auto", "cuda", "tensorrt"),
        ),
    )
    cuda_graphs: bool = field(
        default=False,
        metadata=_about(
            "device", "on a GPU: capture one CUDA graph per bucket; needs --batch-buckets"
        ),
    )
    gpu_memory_limit: int = field(
        default=0,
        metadata=_about(
            "device",
            "on a GPU: most memory of one model's arena; 0 sets no limit",
            unit="bytes",
            bounds=(0, 2**48),
        ),
    )
    gpu_arena: str = field(
        default="same_as_requested",
        metadata=_about(
            "device",
            "on a GPU: how an arena grows",
            choices=("same_as_requested", "next_power_of_two"),
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
            bounds=(1, 65536),
        ),
    )
    max_in_flight: int = field(
        default=0,
        metadata=_about(
            "batching",
            "requests of all models inside one process, waiting or running, before more are refused"
            " unread, which costs little; 0 is --max-queue-size and --instance-count full batches;"
            " more keeps a model that is overloaded from crowding out others",
            bounds=(0, 1048576),
        ),
    )
    batch_buckets: tuple[int, ...] = field(
        default=(),
        metadata=_about(
            "batching",
            "sizes that batches are padded to, with commas between; none runs them as they are",
            bounds=(1, 65536),
        ),
    )
    priority_levels: int = field(
        default=2,
        metadata=_about(
            "batching",
            "levels that a request's `priority` may name: 1 runs first; without one it is the last",
            bounds=(1, 64),
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_about("network", "address to listen on; 0.0.0.0 for every interface"),
    )
    grpc_port: int = field(
        default=8001, metadata=_about("network", "gRPC; 0 for any free port", bounds=(0, 65535))
    )
    http_port: int = field(
        default=8000,
        metadata=_about(
            "network",
            "HTTP: the page, V2 over REST, feedback; 0 for any free port",
            bounds=(0, 65535),
        ),
    )
    allow_http: bool = field(
        default=True, metadata=_about("network", "listen for HTTP, too; false leaves it out")
    )
    transport: str = field(
        default="auto",
        metadata=_about(
            "network",
            "who listens for gRPC: native is the lane in C++, which answers ModelInfer itself and"
            " passes all other calls on to grpcio; auto takes it where it was built",
            choices=("auto", "native", "grpcio"),
        ),
    )
    metrics_port: int = field(
        default=8002,
        metadata=_about(
            "network", "Prometheus, at /metrics; 0 for any free port", bounds=(0, 65535)
        ),
    )
    triton_metrics: bool = field(
        default=False,
        metadata=_about("network", "show the metrics under Triton's names (nv_inference_*), too"),
    )
    max_message_bytes: int = field(
        default=16 * 1024 * 1024,
        metadata=_about(
            "network",
            "largest request and answer over gRPC, and largest body of a request over HTTP, of"
            " which 4 MiB may be JSON; answers over HTTP have no bound but the model's",
            unit="bytes",
            bounds=(1024, 2**31 - 1),
        ),
    )
    max_connection_age: float = field(
        default=0.0,
        metadata=_about(
            "network",
            "how long a client's connection lasts until it is asked to make another, after its"
            " calls in flight: clients that balance learn of new replicas only then; 0 for ever",
            unit="seconds",
            bounds=(0, 86400),
        ),
    )
    max_connection_idle: float = field(
        default=0.0,
        metadata=_about(
            "network",
            "how long a client's connection may be without a call until it is asked to end; 0 for"
            " ever, but 75 s over HTTP, which clients take for granted",
            unit="seconds",
            bounds=(0, 7 * 86400),
        ),
    )
    max_connections: int = field(
        default=10000,
        metadata=_about(
            "network",
            "clients' connections of one process, beyond which new ones are closed at once; so many"
            " for gRPC, over the native transport only, and so many for HTTP, where TLS's are"
            " counted once they have shaken hands, which they have 10 s for. Each needs a file"
            " descriptor, or two",
            bounds=(1, 1048576),
        ),
    )
    stall_timeout: float = field(
        default=30.0,
        metadata=_about(
            "network",
            "how long a request may stop arriving, or come at less than 500 bytes a second, until"
            " it is reset; and a client may leave its answers unread, or read them as slowly, until"
            " its connection is closed; over HTTP, and gRPC's native transport",
            unit="seconds",
            bounds=(1, 3600),
        ),
    )
    tls_certificate: Path | None = field(
        default=None,
        metadata=_about(
            "network",
            "serve gRPC and HTTP by TLS, with this certificate and those that lead to its CA, in"
            " PEM; needs --tls-key. New files are taken within seconds, without a restart. Metrics"
            " stay without TLS",
        ),
    )
    tls_key: Path | None = field(
        default=None,
        metadata=_about("network", "the certificate's private key, in PEM, without a passphrase"),
    )
    tls_client_ca: Path | None = field(
        default=None,
        metadata=_about(
            "network",
            "take clients only that show a certificate signed by one of these, in PEM (mutual TLS)",
        ),
    )
    token_file: Path | None = field(
        default=None,
        metadata=_about(
            "network",
            "answer only calls with a bearer token of this file, over gRPC and HTTP; but health,"
            " and the page's own files, are for all. A line: NAME ROLE[,ROLE] TOKEN [rate=N/s]"
            " [burst=N], with sha256:HEX for a TOKEN that is not to be there, or # and a comment."
            " Roles are infer, feedback, admin; the rate is of calls and of a stream's requests,"
            " in all workers, each of which has its share. Read again when it changes.",
        ),
    )
    tokens: str = field(
        default="",
        repr=False,
        metadata=_about("network", "the text of a --token-file", secret=True),
    )
    allow_admin: bool = field(
        default=False,
        metadata=_about(
            "network",
            "let peers on this machine load and unload models and change settings; behind a proxy"
            " on this machine, that is every caller. With tokens, theirs need not have the role"
            " admin for it",
        ),
    )
    workers: int = field(
        default=1,
        metadata=_about(
            "process", "server processes that share the port, each with all models", bounds=(1, 256)
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
    log_format: str = field(
        default="human",
        metadata=_about(
            "process", "one line of text a message, or one of JSON", choices=("human", "json")
        ),
    )
    access_log: int = field(
        default=0,
        metadata=_about(
            "process",
            "log one in so many inference requests, answered or refused; 0 logs none",
            bounds=(0, 1_000_000_000),
        ),
    )
    otlp_endpoint: str = field(
        default="",
        metadata=_about(
            "process",
            "send spans of requests that carry a sampled traceparent to this OpenTelemetry"
            " collector over HTTP, such as http://localhost:4318; needs the `tracing` extra",
            check=_require_http,
        ),
    )

    @property
    def room(self) -> int:
        """`max_in_flight`, or what it is by default."""
        batches = self.instance_count * self.max_batch_size
        return self.max_in_flight or self.max_queue_size + batches

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes that batches are padded to, up to the largest batch; none without any."""
        if not self.batch_buckets:
            return ()
        return tuple(sorted({*self.batch_buckets, self.max_batch_size}))
