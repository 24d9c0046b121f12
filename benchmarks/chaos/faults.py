"""What is done to the server while callers ask, one after the other, and who may fail meanwhile.

Who asks again may never fail. Who does not may only where no protocol could help: its requests were
inside a process that was killed, on a stream that had to end, or came while there was no server.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.callers import PLAIN, STREAM, channel
from benchmarks.chaos.ledger import Fault, Ledger
from benchmarks.chaos.repository import MODEL, Repository
from benchmarks.chaos.server import WORKERS, Server
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

# Of a connection that ends under a call, or that cannot be made.
BROKEN = frozenset({"UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN"})
# A stream goes to one process; it ends with it, and what came too late for it is refused.
STREAM_ENDS = {STREAM: BROKEN | {"REFUSED", "ENDED"}}
KEPT = 4  # versions
# Seconds until a version that was published answers.
SERVED_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class World:
    """What faults are done to."""

    server: Server
    repository: Repository
    ledger: Ledger
    clock: Path | None
    random: random.Random


Do = Callable[[World, Fault], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a fault does, who may fail meanwhile, and for how many seconds after it."""

    act: Do
    excuses: dict[str, frozenset[str]] = field(default_factory=dict)
    settles: float = 0.0


def publish(world: World, fault: Fault) -> None:
    """A new version, until it answers; the oldest is deleted while others may still use it."""
    number = world.repository.publish()
    _wait_until_served(world, number)
    oldest = world.repository.numbers[0]
    if len(world.repository.numbers) > KEPT:
        world.repository.delete(oldest)
    fault.note = f"version {number}"


def unload(world: World, fault: Fault) -> None:
    """The older one of the two that are served, under whoever uses it."""
    numbers = world.repository.numbers
    if len(numbers) > 1:
        world.repository.delete(numbers[-2])
        time.sleep(1.0)
        fault.note = f"version {numbers[-2]}"


def publish_broken(world: World, fault: Fault) -> None:
    """A version that is no model: it is refused, and the one before goes on."""
    number = world.repository.publish_broken()
    time.sleep(1.0)
    world.repository.delete(number)


def fill_disk(world: World, fault: Fault) -> None:
    """Publishing fails, and leaves nothing behind."""
    with world.repository.full():
        clean = world.repository.publish_without_room()
    fault.note = "publishing failed, nothing left behind" if clean else "VIOLATION: not clean"


def take_repository(world: World, fault: Fault) -> None:
    """Its file system disappears, and returns."""
    with world.repository.away():
        time.sleep(2.0)


def restart_workers(world: World, fault: Fault) -> None:
    """SIGHUP: each is replaced."""
    world.server.replace_workers()


def kill_worker(world: World, fault: Fault) -> None:
    """SIGKILL: in flight, in the middle of whatever it does."""
    number = world.random.randrange(WORKERS)
    world.server.kill(number)
    fault.note = f"worker {number}"


def restart_server(world: World, fault: Fault) -> None:
    """SIGTERM; it drains, ends, and another is started."""
    status = world.server.restart()
    fault.note = "exit status 0" if status == 0 else f"VIOLATION: exit status {status}"


def move_clock(world: World, fault: Fault) -> None:
    """An hour ahead, an hour back, and right again."""
    assert world.clock
    for offset in ("+3600", "-3600", "+0"):
        world.clock.write_text(f"{offset}\n")
        time.sleep(1.5)


def send_garbage(world: World, fault: Fault) -> None:
    """Who speaks no HTTP/2, who says that much comes and sends nothing, and who is gone at once."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", world.server.port)) as connection:
            connection.sendall(world.random.randbytes(world.random.randrange(1, 4000)))
    time.sleep(0.5)


# A connection that is made to a process as it ends is reset a moment later; and while there is
# no server, a channel of gRPC waits longer and longer until it tries again, and fails calls until
# then: five seconds at most, in ours.
FAULTS = {
    "publish and swap": Kind(publish),
    "unload an old version": Kind(unload),
    "publish a broken version": Kind(publish_broken),
    "full disk at publish": Kind(fill_disk),
    "repository away": Kind(take_repository),
    "rolling restart": Kind(restart_workers, STREAM_ENDS, 0.5),
    "kill -9 of a worker": Kind(kill_worker, {PLAIN: BROKEN, **STREAM_ENDS}, 1.0),
    "SIGTERM and start again": Kind(restart_server, {PLAIN: BROKEN, **STREAM_ENDS}, 6.0),
    "clock jumps": Kind(move_clock),
    "garbage": Kind(send_garbage),
}


def possible(world: World) -> list[str]:
    """Names of those that can be done here."""
    left_out = set()
    if not world.repository.bounded:
        left_out.add("full disk at publish")
    if world.clock is None:
        left_out.add("clock jumps")
    return [name for name in FAULTS if name not in left_out]


def do(world: World, name: str) -> None:
    """Do it; its entry is in the ledger from its begin on."""
    kind = FAULTS[name]
    excuses = kind.excuses
    if name == "rolling restart" and world.server.transport == "grpcio":
        # It has no call wait for clients to hear that they are to go: it cancels what comes too
        # late, and who does not ask again feels it.
        excuses = {**excuses, PLAIN: BROKEN}
    with world.ledger.fault(name, excuses) as fault:
        kind.act(world, fault)
        time.sleep(kind.settles)


def _wait_until_served(world: World, number: int) -> None:
    request = pb.ModelReadyRequest(name=MODEL, version=str(number))
    end = time.monotonic() + SERVED_WITHIN
    with channel(world.server.address, retry=True) as connection:
        ready = pb_grpc.GRPCInferenceServiceStub(connection).ModelReady
        while not ready(request, timeout=5.0, wait_for_ready=True).ready:
            if time.monotonic() > end:
                raise RuntimeError(f"version {number} is not served")
            time.sleep(0.02)
