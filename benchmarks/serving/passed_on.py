"""What passing a call on costs: calls that the lane leaves to grpcio, beside grpcio asked directly.

Both servers run at the same time on the server's core and are asked in turns, as in `metrics_cost`,
and CPU time per call is compared.

The calls are those that users make: ServerLive, as probes and clients do, is the cheapest, so that
what the lane adds is the largest share; ModelMetadata is what a client asks before its first
request; and ModelInfer with typed contents is what grpcurl sends, and clients of JSON by a proxy.

Most of the difference was waking up: see `Server::State::give_way` in the lane. What is left is 13
to 26 µs a call for HTTP/2 on both sides; grpcio's own part is some 10 µs cheaper than alone, as it
reads several calls at once, and writes to a Unix socket. Typed contents stay the dearest: a thread
of the lane's batcher takes a batch and then waits for Python's lock, where one of Python's has the
lock when it takes one, so that its batches are larger (5.5 rows rather than 3).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.serving import h2load
from benchmarks.serving.compare import progress
from benchmarks.serving.contestants import Ours, digits
from benchmarks.serving.h2load import Target
from benchmarks.serving.measure import SINGLE
from benchmarks.serving.models import Model, load_model
from benchmarks.serving.peers import BUILT_IN
from benchmarks.serving.process import Cores
from benchmarks.serving.session import Session, started
from serving.pb import inference_pb2 as pb

MODEL = "linear"
REPEATS = 3  # loads of each server and call in each round
_WARM_UP = 0.5  # seconds of load before each of them
SERVICE = "/inference.GRPCInferenceService/"

# By call, then by server: CPU µs per call and calls per second of each load.
Found = dict[str, dict[str, dict[str, list[float]]]]


def calls(model: Model) -> dict[str, bytes]:
    """What is asked: the cheapest call, a common one, and the dearest that the lane passes on."""
    typed = pb.ModelInferRequest(model_name=model.name)
    tensor = typed.inputs.add(name="images", datatype="UINT8", shape=(1, 28, 28))
    tensor.contents.uint_contents.extend(model.images[0].ravel().tolist())
    return {
        "ServerLive": b"",
        "ModelMetadata": pb.ModelMetadataRequest(name=model.name).SerializeToString(),
        "ModelInfer with typed contents": typed.SerializeToString(),
    }


def passed_on(
    ours: Ours, cores: Cores, rounds: int, seconds: float, save: Callable[[Found], None]
) -> None:
    """Each call in turns, `save` after each round; the servers are started anew in each."""
    found: Found = {}
    model = load_model(ours.repository, MODEL, "fp32")
    servers = [digits(ours, "fp32", transport) for transport in ("native", "grpcio")]
    for number in range(rounds):
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(started(replace(each, warm_up=0.0), model, BUILT_IN, cores))
                for each in (reversed(servers) if number % 2 else servers)
            ]
            for call, message in calls(model).items():
                for _ in range(REPEATS):
                    for session in sessions:
                        cpu, rate = _load(session, call.partition(" ")[0], message, seconds)
                        name = session.contestant.name
                        _add(found, call, name, {"cpu_us": cpu, "calls_per_second": rate})
                        progress(f"{call}, {name}: {cpu:.1f} µs CPU, {rate:.0f} calls/s")
        save(found)


def _load(session: Session, method: str, message: bytes, seconds: float) -> tuple[float, float]:
    """CPU µs per call, calls per second."""
    path = SERVICE + method
    answer = session.checker.ask(path, message)
    if method == "ModelInfer":
        session.checker.check_answers([answer])
    target = Target(session.port, path, session.cores.load, len(answer))
    clients, streams = SINGLE
    h2load.load(target, message, clients=clients, streams=streams, seconds=_WARM_UP)
    used = session.usage().cpu_seconds
    load = h2load.load(target, message, clients=clients, streams=streams, seconds=seconds)
    return (session.usage().cpu_seconds - used) * 1e6 / load.requests, load.rate


def _add(found: Found, call: str, server: str, measured: dict[str, float]) -> None:
    lists = found.setdefault(call, {}).setdefault(server, {field: [] for field in measured})
    for field, value in measured.items():
        lists[field].append(value)
