"""Every RPC over sockets, each case asked of grpcio's server and of the native lane's.

Judges the status that a caller sees, that both transports say the same of a ModelInfer, and that a
good call among them is answered rightly.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from random import Random
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.fuzz import damage, images, messages, models
from benchmarks.fuzz.running import HANG, Target, Wrong
from serving.pb import digits_pb2
from serving.pb import inference_pb2 as pb
from serving.server import Server

_SERVICES = (
    *(pb.DESCRIPTOR.services_by_name.values()),
    *(digits_pb2.DESCRIPTOR.services_by_name.values()),
    *(health_pb2.DESCRIPTOR.services_by_name.values()),
    *(reflection_pb2.DESCRIPTOR.services_by_name.values()),
)
# Methods by their paths. A health watch ends with its caller only: it has tests of its own.
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in _SERVICES
    for method in service.methods
    if method.name != "Watch"
}
INFER = "/inference.GRPCInferenceService/ModelInfer"
STATUSES = messages.STATUSES | {
    *("OK", "UNIMPLEMENTED", "FAILED_PRECONDITION", "PERMISSION_DENIED", "DEADLINE_EXCEEDED"),
}
_WORDS = (*messages.WORDS, "log_info", "log_verbose_level", "log_file", "trace_level",
          "trace_rate", "trace_count", "TIMESTAMPS", "OFF", "unload_dependents",
          "readiness", "liveness", "7")  # fmt: skip
_LENGTH = struct.Struct(">I")


def _seed(path: str, draw: Random) -> bytes:
    """A good message of the method, or an empty one."""
    name = path.rpartition("/")[2]
    if name in ("ModelInfer", "ModelStreamInfer"):
        return draw.choice(messages.SEEDS)
    if name in ("Classify", "StreamClassify"):
        return images.request(draw)
    kind = GetMessageClass(METHODS[path].input_type)
    message = kind()
    if name == "TraceSetting":
        message.settings["trace_rate"].value.append("100")  # type: ignore[attr-defined]
    elif name == "LogSettings":
        message.settings["log_info"].bool_param = True  # type: ignore[attr-defined]
    elif "feedback" in kind.DESCRIPTOR.fields_by_name:
        message.feedback.add(prediction_id="A" * 60, label="7")  # type: ignore[attr-defined]
    for field in ("name", "model_name"):
        if field in kind.DESCRIPTOR.fields_by_name:
            setattr(message, field, draw.choice(("echo", "free", "digits")))
    return message.SerializeToString()


def _damaged(path: str, draw: Random) -> bytes:
    if path == INFER:
        return messages.infer_message(draw)
    data, kind = _seed(path, draw), draw.random()
    if kind < 0.1:
        return draw.randbytes(draw.randrange(100))
    if kind < 0.3:
        return damage.bytes_of(draw, data, messages.SEEDS)
    message = GetMessageClass(METHODS[path].input_type).FromString(data)
    damage.message_of(draw, message, _WORDS)
    return message.SerializeToString()


class Calls:
    """The target."""

    def __init__(self, channels: Sequence[grpc.Channel]) -> None:
        self._channels = channels
        self._others = [path for path in METHODS if path != INFER]

    def case(self, draw: Random) -> bytes:
        """A path, a line's end, and messages with their lengths: of a stream one to three."""
        path = INFER if draw.random() < 0.7 else draw.choice(self._others)
        count = draw.choice((1, 2, 3)) if METHODS[path].client_streaming else 1
        parts = [_damaged(path, draw) for _ in range(count)]
        return path.encode() + b"\n" + b"".join(_LENGTH.pack(len(p)) + p for p in parts)

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """All at once."""
        calls = [[_start(channel, case) for channel in self._channels] for case in cases]
        good = [_start(channel, GOOD) for channel in self._channels]
        told = [_verdict(case, [_ended(each) for each in both])
                for case, both in zip(cases, calls, strict=True)]  # fmt: skip
        for each in good:
            code, details, answers = _ended(each)
            if code != "OK":
                raise Wrong(f"a good call came to {code}: {details}", *cases)
            messages.check_echo(messages.GOOD.SerializeToString(), _infer_answer(answers[0]))
        return told


def _unpacked(case: bytes) -> tuple[str, list[bytes]]:
    path, _, packed = case.partition(b"\n")
    parts, at = [], 0
    while at + _LENGTH.size <= len(packed):
        (size,) = _LENGTH.unpack_from(packed, at)
        at += _LENGTH.size
        parts.append(packed[at : at + size])
        at += size
    return path.decode(), parts


GOOD = INFER.encode() + b"\n" + _LENGTH.pack(messages.GOOD.ByteSize()) + (
    messages.GOOD.SerializeToString()
)  # fmt: skip


def _start(given: grpc.Channel, case: bytes) -> _Call:
    """The call, which goes on."""
    path, parts = _unpacked(case)
    channel = cast(Any, given)  # whose types ask for serializers: without, bytes are sent
    if METHODS[path].client_streaming:
        return _Call(channel.stream_stream(path)(iter(parts), timeout=HANG / 2), True)
    return _Call(channel.unary_unary(path).future(parts[0], timeout=HANG / 2), False)


class _Call(NamedTuple):
    """One on its way, and whether it may have several answers."""

    rpc: Any
    streams: bool


def _ended(call: _Call) -> _Ended:
    """Wait for it."""
    answers: tuple[bytes, ...] = ()
    with suppress(grpc.RpcError):
        answers = tuple(call.rpc) if call.streams else (call.rpc.result(),)
    return _Ended(call.rpc.code().name, call.rpc.details() or "", answers)


class _Ended(NamedTuple):
    """What a caller got."""

    code: str
    details: str
    answers: tuple[bytes, ...]


def _verdict(case: bytes, ended: list[_Ended]) -> str:
    path, parts = _unpacked(case)
    for code, details, _ in ended:
        if code not in STATUSES:
            raise Wrong(f"{path}: {code}: {details}", case)
    if path.endswith("ModelInfer"):
        _require_same(case, ended)
        for answer in ended[0][2]:
            messages.check_echo(parts[0], _infer_answer(answer))
    return f"{path.rpartition('/')[2]} {ended[0][0]}"


def _require_same(case: bytes, ended: list[_Ended]) -> None:
    """Both transports said so, but for what is signed; of a short timeout, each may be in time."""
    if "DEADLINE_EXCEEDED" in {each.code for each in ended}:
        return
    told = []
    for code, details, answers in ended:
        bare = [_infer_answer(each) for each in answers]
        for each in bare:
            each.ClearField("parameters")
        told.append((code, details, [each.SerializeToString(deterministic=True) for each in bare]))
    if any(each != told[0] for each in told):
        raise Wrong(f"the transports differ: {[each[:2] for each in told]}", case)


def _infer_answer(data: bytes) -> pb.ModelInferResponse:
    return pb.ModelInferResponse.FromString(data)


@contextmanager
def opened() -> Iterator[Target]:
    """A server of each transport that there is."""
    transports = ["grpcio", *(["native"] if find_spec("serving.lane.native") else [])]
    with ExitStack() as stack:
        servers: list[Server] = [
            stack.enter_context(models.server(each, allow_admin=True)) for each in transports
        ]
        yield Calls(
            [
                stack.enter_context(grpc.insecure_channel(f"localhost:{each.grpc_port}"))
                for each in servers
            ]
        )
