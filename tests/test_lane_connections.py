"""What clients do that no gRPC library would, over real sockets: the lane bounds it, or does as
grpcio does. Frames are made by hand, as RFC 9113 has them.
"""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import LIFETIME, PATIENCE, Digits, Running, publish_classifier, until
from prometheus_client.parser import text_string_to_metric_families

from serving.pb import inference_pb2 as pb
from serving.transport import MAX_CALLS_PER_CONNECTION

pytestmark = pytest.mark.lane

Serve = Callable[..., AbstractContextManager[Running]]
INFER = "/inference.GRPCInferenceService/ModelInfer"
READY = "/inference.GRPCInferenceService/ServerReady"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
NO_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0, 8, 11
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    @property
    def error(self) -> int:
        """Of RST_STREAM and GOAWAY."""
        (code,) = struct.unpack_from("!I", self.payload, 4 if self.kind == GOAWAY else 0)
        return int(code)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack("!IBBI", len(payload), kind, flags, stream)
    return head[1:] + payload


def block(path: str, *metadata: tuple[str, str], method: str = "POST") -> bytes:
    """Headers of a call, each a literal that no table keeps (RFC 7541, 6.2.2)."""
    fields = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def framed(message: bytes) -> bytes:
    return struct.pack("!BI", 0, len(message)) + message


class Peer:
    """An HTTP/2 client that sends what a test tells it to."""

    def __init__(self, running: Running, settings: bytes = b"") -> None:
        port = int(running.address.rpartition(":")[2])
        self._socket = socket.create_connection(("localhost", port), timeout=PATIENCE)
        self._heard = b""
        self.send(PREFACE, frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: bytes) -> None:
        self._socket.sendall(b"".join(frames))

    def flood(self, frames: bytes, times: int) -> None:
        """Send, until the other side wants no more."""
        try:
            for _ in range(times):
                self._socket.sendall(frames)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def frames(self) -> Iterator[Frame]:
        """What comes, until the other side closes; it takes care of SETTINGS."""
        while (head := self._take(9)) is not None:
            size, kind, flags, stream = struct.unpack("!IBBI", b"\0" + head)
            payload = self._take(size) or b""
            if kind == SETTINGS and not flags & ACK:
                self.flood(frame(SETTINGS, ACK, 0), 1)
            yield Frame(kind, flags, stream, payload)

    def _take(self, size: int) -> bytes | None:
        while len(self._heard) < size:
            try:
                more = self._socket.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._heard += more
        taken, self._heard = self._heard[:size], self._heard[size:]
        return taken

    def last_goaway(self) -> Frame:
        """When the other side has closed."""
        return [each for each in self.frames() if each.kind == GOAWAY][-1]

    def answer(self, stream: int) -> list[Frame]:
        """All of one stream, up to its end."""
        mine = []
        for each in self.frames():
            if each.stream == stream:
                mine.append(each)
            if each.stream == stream and (each.ends_stream or each.kind == RST_STREAM):
                break
        return mine


def body(frames: Iterable[Frame]) -> bytes:
    return b"".join(each.payload for each in frames if each.kind == DATA)


@pytest.fixture(scope="module")
def lane(
    tmp_path_factory: pytest.TempPathFactory, serve: Serve, digits: Digits
) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("models")
    publish_classifier(path, digits)
    with serve(path, transport="native") as running:
        yield running


@pytest.fixture(scope="module", params=["grpcio", "native"])
def either(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Serve,
    digits: Digits,
) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("models")
    publish_classifier(path, digits)
    with serve(path, transport=request.param) as running:
        yield running


@pytest.fixture
def message(digits: Digits) -> bytes:
    return infer_message(digits)


def infer_message(digits: Digits) -> bytes:
    array = digits.images[:1]
    request = pb.ModelInferRequest(model_name="classifier", raw_input_contents=[array.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=array.shape)
    return request.SerializeToString()


@contextmanager
def others_are_served(running: Running, message: bytes) -> Iterator[None]:
    """Whatever one client does, another has its answers, before and after."""
    infer = running.channel.unary_unary(INFER, bytes, bytes)
    assert infer(message, timeout=PATIENCE)
    yield
    assert infer(message, timeout=PATIENCE)


def test_calls_that_are_reset_again_and_again_end_the_connection(
    lane: Running, message: bytes
) -> None:
    with others_are_served(lane, message), Peer(lane) as peer:
        for stream in range(1, 10_000, 2):
            call = frame(HEADERS, END_HEADERS, stream, block(INFER))
            peer.flood(call + frame(RST_STREAM, 0, stream, struct.pack("!I", CANCEL)), 1)
        assert peer.last_goaway().error == ENHANCE_YOUR_CALM


def test_headers_that_never_end_end_the_connection(lane: Running, message: bytes) -> None:
    with others_are_served(lane, message), Peer(lane) as peer:
        peer.flood(frame(HEADERS, 0, 1, block(INFER)), 1)
        peer.flood(frame(CONTINUATION, 0, 1, b"\0\1a\1b") * 10, 100)
        assert all(each.stream != 1 for each in peer.frames())  # and the other side closes


@pytest.mark.parametrize(
    "flood",
    [frame(PING, 0, 0, bytes(8)), frame(SETTINGS, 0, 0), frame(DATA, 0, 1)],
    ids=["pings", "settings", "empty data"],
)
def test_frames_that_bring_nothing_end_the_connection(
    lane: Running, message: bytes, flood: bytes
) -> None:
    with others_are_served(lane, message), Peer(lane) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, block(READY)))
        peer.flood(flood * 100, 100)
        # Who goes on sending may be told by a reset of the socket alone, which outruns GOAWAY.
        told = {each.error for each in peer.frames() if each.kind == GOAWAY}
        assert told <= {ENHANCE_YOUR_CALM}  # and the other side closes


def test_a_peer_without_a_window_keeps_its_answer_waiting_and_nobody_else_s(
    lane: Running, message: bytes
) -> None:
    no_window = struct.pack("!HI", INITIAL_WINDOW_SIZE, 0)
    with others_are_served(lane, message), Peer(lane, no_window) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, block(INFER)))
        peer.send(frame(DATA, END_STREAM, 1, framed(message)))
        assert next(each for each in peer.frames() if each.stream == 1).kind == HEADERS
        peer.send(frame(SETTINGS, 0, 0, struct.pack("!HI", INITIAL_WINDOW_SIZE, 65535)))
        assert peer.answer(1)[-1].ends_stream


def compressed_call(stream: int, message: bytes) -> bytes:
    """A ModelInfer that the lane passes on."""
    packed = gzip.compress(message)
    headers = block(INFER, ("grpc-encoding", "gzip"))
    data = struct.pack("!BI", 1, len(packed)) + packed
    return frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, data)


def test_peers_without_a_window_take_no_room_from_others(
    tmp_path: Path, serve: Serve, digits: Digits, message: bytes
) -> None:
    publish_classifier(tmp_path, digits)
    no_window = struct.pack("!HI", INITIAL_WINDOW_SIZE, 0)
    # Nobody is let go: room is there as grpcio has answered.
    options: dict[str, Any] = {"max_in_flight": 3, "stall_timeout": LIFETIME}
    with (
        serve(tmp_path, transport="native", **options) as running,
        Peer(running, no_window) as peer,
    ):
        peer.send(*(compressed_call(stream, message) for stream in (1, 3, 5)))
        begun = (each.stream for each in peer.frames() if each.kind == HEADERS)
        assert {next(begun) for _ in range(3)} == {1, 3, 5}
        infer = running.channel.unary_unary(INFER, bytes, bytes)
        until(lambda: infer.future(message, timeout=PATIENCE).code() is grpc.StatusCode.OK)


def test_a_peer_that_does_not_read_what_grpcio_answers_is_let_go(
    tmp_path: Path, serve: Serve, digits: Digits, message: bytes
) -> None:
    publish_classifier(tmp_path, digits)
    no_window = struct.pack("!HI", INITIAL_WINDOW_SIZE, 0)
    with (
        serve(tmp_path, transport="native", stall_timeout=1.0) as running,
        others_are_served(running, message),
        Peer(running, no_window) as peer,
    ):
        peer.send(compressed_call(1, message))
        assert not any(each.ends_stream for each in peer.frames())  # and the other side closes
        assert counted(running, "connections_dropped_total", reason="stalled") == 1


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(64), b"\x16\x03\x01\x02\x00\x01" * 20],
    ids=["HTTP/1.1", "zeros", "TLS"],
)
def test_who_does_not_talk_http_2_is_let_go_at_once(
    lane: Running, message: bytes, garbage: bytes
) -> None:
    port = int(lane.address.rpartition(":")[2])
    with (
        others_are_served(lane, message),
        socket.create_connection(("localhost", port), timeout=PATIENCE / 6) as peer,
    ):
        peer.sendall(garbage)
        try:
            while peer.recv(65536):
                pass
        except ConnectionResetError:
            pass  # as good


def test_a_message_is_answered_before_the_client_says_that_it_was_the_last(
    either: Running, message: bytes
) -> None:
    with Peer(either) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, block(INFER)))
        peer.send(frame(DATA, 0, 1, framed(message)))
        frames = peer.answer(1)
    answer = pb.ModelInferResponse.FromString(body(frames)[5:])
    assert answer.model_name == "classifier"
    assert frames[-1].ends_stream


def test_calls_of_another_kind_end_alike(either: Running) -> None:
    """By GET, of another content type, without a message."""
    kinds = [
        block(INFER, method="GET"),
        block(INFER).replace(_text("application/grpc"), _text("text/plain")),
        block(INFER),
    ]
    ends = []
    for kind in kinds:
        with Peer(either) as peer:
            peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, kind))
            last = peer.answer(1)[-1]
            ends.append((last.kind, last.ends_stream))
    assert ends == [(RST_STREAM, False), (HEADERS, True), (HEADERS, True)]


def test_metadata_of_any_kind_goes_by(either: Running, message: bytes) -> None:
    metadata: tuple[tuple[str, str | bytes], ...] = (
        ("a-bin", bytes(range(256))),
        ("b-bin", b""),
        ("spaces", " both sides "),
        ("grpc-accept-encoding", "gzip"),
        *((f"key-{i}", str(i)) for i in range(90)),
    )
    for method in (INFER, READY):
        call = either.channel.unary_unary(method, bytes, bytes)
        given = message if method == INFER else b""
        assert call(given, timeout=PATIENCE, metadata=metadata)


def test_a_stream_of_one_message_that_stays_open_is_answered(
    either: Running, message: bytes
) -> None:
    answered = threading.Event()

    def requests() -> Iterator[bytes]:
        yield message
        answered.wait(PATIENCE)

    call = either.channel.stream_stream(INFER, bytes, bytes)(requests(), timeout=PATIENCE)
    first = next(iter(call))
    assert pb.ModelInferResponse.FromString(first).model_name == "classifier"
    answered.set()
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_no_call_is_refused_on_a_connection_that_has_as_many_as_it_may(lane: Running) -> None:
    """The client keeps to the limit that it is told, and begins a call whenever one has ended."""
    options = [("grpc.enable_retries", 0)]  # or it would make good what was refused
    with grpc.insecure_channel(lane.address, options=options) as channel:
        call = channel.unary_unary(READY, None, None)
        calls = [call.future(b"", timeout=PATIENCE) for _ in range(3 * MAX_CALLS_PER_CONNECTION)]
        codes = Counter(each.code() for each in calls)
    assert codes == {grpc.StatusCode.OK: len(calls)}


def test_requests_that_never_end_hold_up_nobody(lane: Running, message: bytes) -> None:
    with others_are_served(lane, message), Peer(lane) as peer:
        for stream in range(1, 1000, 2):
            peer.send(frame(HEADERS, END_HEADERS, stream, block(INFER)))
            peer.send(frame(DATA, 0, stream, framed(message)[:100]))
        peer.send(frame(HEADERS, END_HEADERS, 1001, block(INFER)))
        peer.send(frame(DATA, END_STREAM, 1001, framed(message)))
        assert peer.answer(1001)[-1].ends_stream
        assert lane.server.inference.wait_until_idle(PATIENCE)


def counted(running: Running, name: str, **labels: str) -> float:
    with urllib.request.urlopen(running.metrics_url, timeout=PATIENCE) as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = (each for family in families for each in family.samples)
    (found,) = (s.value for s in samples if s.name == f"inference_{name}" and s.labels == labels)
    return found


def test_a_request_that_comes_in_drops_is_reset(
    tmp_path: Path, serve: Serve, digits: Digits, message: bytes
) -> None:
    publish_classifier(tmp_path, digits)
    over = threading.Event()

    def drip(peer: Peer) -> None:
        while not over.wait(0.05):
            peer.flood(frame(DATA, 0, 1, b"x"), 1)

    with serve(tmp_path, transport="native", stall_timeout=1.0) as running, Peer(running) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, block(INFER)))
        peer.send(frame(DATA, 0, 1, struct.pack("!BI", 0, 1 << 20)))
        dripping = threading.Thread(target=drip, args=(peer,))
        dripping.start()
        with others_are_served(running, message):
            last = peer.answer(1)[-1]
        over.set()
        dripping.join()
        assert (last.kind, last.error) == (RST_STREAM, CANCEL)
        assert counted(running, "stalled_requests_total") == 1


def test_no_more_connections_are_open_than_may_be(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    with serve(tmp_path, transport="native", max_connections=2) as running:
        with Peer(running) as first, Peer(running) as second:
            for peer in (first, second):
                assert next(peer.frames()).kind == SETTINGS
            with Peer(running) as third:
                assert list(third.frames()) == []  # and the other side closes
            assert counted(running, "connections") == 2
            assert counted(running, "connections_limit") == 2
            assert counted(running, "connections_turned_away_total") == 1
        until(lambda: counted(running, "connections") == 0)
        with Peer(running) as again:
            assert next(again.frames()).kind == SETTINGS


def test_why_connections_were_dropped_is_counted(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    with serve(tmp_path, transport="native", stall_timeout=1.0) as running:
        with Peer(running) as peer:
            peer.flood(frame(SETTINGS, 0, 0) * 100, 100)
            for _ in peer.frames():
                pass
        dropped = "connections_dropped_total"
        assert counted(running, dropped, reason="abuse") == 1
        with Peer(running) as peer:
            peer.flood(frame(HEADERS, 0, 1, block(INFER)), 1)
            peer.flood(frame(CONTINUATION, 0, 1, b"\0\1a\1b") * 10, 100)
            for _ in peer.frames():
                pass
        assert counted(running, dropped, reason="abuse") == 2
        assert counted(running, dropped, reason="stalled") == 0
        no_window = struct.pack("!HI", INITIAL_WINDOW_SIZE, 0)
        with Peer(running, no_window) as peer:
            peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(READY)))
            peer.send(frame(HEADERS, END_HEADERS, 3, block(INFER)))
            peer.send(frame(DATA, END_STREAM, 3, framed(infer_message(digits))))
            for _ in peer.frames():
                pass
        assert counted(running, dropped, reason="abuse") == 2
        assert counted(running, dropped, reason="stalled") == 1


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_a_connection_without_calls_is_asked_to_end(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    publish_classifier(tmp_path, digits)
    with (
        serve(tmp_path, transport=transport, max_connection_idle=0.5) as running,
        Peer(running) as peer,
    ):
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(READY)))
        assert struct.unpack_from("!I", peer.last_goaway().payload) == (1,)


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_a_call_that_outlives_its_connection_ends_after_the_grace(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    publish_classifier(tmp_path, digits)
    limits = {"max_connection_age": 0.5, "drain_timeout": 0.5}
    with serve(tmp_path, transport=transport, **limits) as running:
        never = threading.Event()
        requests = (pb.ModelInferRequest() for _ in iter(never.wait, True))
        with pytest.raises(grpc.RpcError) as ended:
            list(running.stub.ModelStreamInfer(requests))
        never.set()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_metadata_may_be_so_large_and_no_larger(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    """By chance, grpcio's default refuses some of the first ones."""
    publish_classifier(tmp_path, digits)
    with serve(tmp_path, transport=transport) as running:
        stub = running.stub
        request = pb.ModelInferRequest.FromString(infer_message(digits))
        for _ in range(20):
            some = (("x-some", "a" * 15000),)
            assert stub.ModelInfer(request, metadata=some).model_name == "classifier"
            assert stub.ServerReady(pb.ServerReadyRequest(), metadata=some).ready
        much = (("x-much", "a" * 17000),)
        for ask in (
            lambda: stub.ModelInfer(request, metadata=much),
            lambda: stub.ServerReady(pb.ServerReadyRequest(), metadata=much),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                ask()
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_server_that_stops_tells_its_clients_and_closes(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    with serve(tmp_path, transport="native") as running, Peer(running) as peer:
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(READY)))
        peer.answer(1)
        stopping = threading.Thread(target=running.server.stop)
        stopping.start()
        last = peer.last_goaway()
        stopping.join()
    assert (last.error, struct.unpack_from("!I", last.payload)) == (NO_ERROR, (1,))
