"""Who is compared, and how each is started for one model: ours, the no-op server, the peers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import environments, peers
from benchmarks.serving.models import Model
from benchmarks.serving.peers import BUILT_IN, Launch, Tuning
from benchmarks.serving.process import free_ports
from benchmarks.serving.wire import TORCHSERVE, V2, Protocol, answer_v2

# For requests of 256 images; memory is measured at our defaults.
LARGEST = Tuning(256, 0.0)
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server: `launch(model, tuning, directory)` says how it is started for a model.

    `candidates` are the batching settings among which its best are chosen. One with `fixed`
    answers gives that of the first image whatever it is asked. `missing` says why it cannot run.
    """

    name: str
    protocol: Protocol
    launch: Callable[[Model, Tuning, Path], Launch]
    precision: str = "fp32"
    candidates: Sequence[Tuning] = (BUILT_IN,)
    few: Tuning | None = None  # settings for one or a few in flight, where they are known
    warm_up: float = 2.0  # seconds of load before it is measured
    fixed: bool = False
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Ours:
    """How our servers are started."""

    repository: Path
    options: Sequence[str] = field(default_factory=tuple)  # further flags of `python -m serving`
    noop_style: str = "sync"


def contestants(ours: Ours, environments_directory: Path) -> list[Contestant]:
    """All of them, best known first; a peer that is not installed says so in `missing`."""
    return [
        digits(ours, "fp32"),
        digits(ours, "int8"),
        digits(ours, "fp32", "grpcio"),
        digits(ours, "int8", "grpcio"),
        Contestant("no-op", V2, noop(ours.noop_style), fixed=True),
        *(
            Contestant(
                peer.name,
                protocol,
                peer.launcher(environments_directory / peer.name),
                candidates=peer.candidates,
                warm_up=peer.warm_up,
                missing=environments.missing(environments_directory, peer.name),
            )
            for peer, protocol in (
                (peers.TRITON, V2),
                (peers.MLSERVER, V2),
                (peers.TORCHSERVE, TORCHSERVE),
            )
        ),
    ]


def digits(ours: Ours, precision: str, transport: str = "native") -> Contestant:
    """Our server, on one of a model's precisions, over one of its transports."""
    parts = ["digits", "" if transport == "native" else transport]
    parts += ["" if precision == "fp32" else precision]
    return Contestant(
        " ".join(filter(None, parts)),
        V2,
        _launcher(ours, precision, ["serving"], transport),
        precision,
        few=LARGEST,
        missing=lacking(transport),
    )


def lacking(transport: str) -> str:
    """Why our server cannot use the transport."""
    if transport == "native" and importlib.util.find_spec("serving.lane.native") is None:
        return "the native lane is not built; `make lane` builds it"
    return ""


def ablated(ours: Ours, left_out: Sequence[str]) -> Contestant:
    """Our server without parts of its work, as `ablated_server` names them; fp32, over the lane."""
    program = ["benchmarks.serving.ablated_server", ",".join(left_out)]
    launch = _launcher(ours, "fp32", program, "native", counts="metrics" not in left_out)
    return Contestant(
        f"digits without {' and '.join(left_out)}", V2, launch, missing=lacking("native")
    )


def _launcher(
    ours: Ours, precision: str, program: Sequence[str], transport: str, *, counts: bool = True
) -> Callable[[Model, Tuning, Path], Launch]:
    """How our server is started, as a Python module with arguments before its options."""

    def launch(model: Model, tuning: Tuning, directory: Path) -> Launch:
        """All models of the repository are served, whichever is asked."""
        grpc_port, metrics_port = free_ports(2)
        command = [sys.executable, "-m", *program, "--precision", precision]
        command += ["--transport", transport]
        command += ["--model-repository", str(ours.repository), "--intra-op-threads", "1"]
        command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
        command += ["--http-port", "0"]
        if tuning.batch:
            command += ["--max-batch-size", str(tuning.batch)]
        command += ours.options
        environment = {"PYTHONPATH": str(ROOT)}
        return Launch(command, grpc_port, environment, metrics_port if counts else 0)

    return launch


def noop(style: str) -> Callable[[Model, Tuning, Path], Launch]:
    """How a no-op server of that style is started."""

    def launch(model: Model, tuning: Tuning, directory: Path) -> Launch:
        """Its answer to everything is a right one to the first image."""
        (port,) = free_ports(1)
        answer = directory / "answer"
        answer.write_bytes(answer_v2(model.name, model.expected[:1]))
        command = [sys.executable, "-m", "benchmarks.serving.noop_server", "--style", style]
        command += ["--port", str(port), "--answer", str(answer)]
        return Launch(command, port, {"PYTHONPATH": str(ROOT)})

    return launch
