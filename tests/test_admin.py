"""Who may administrate, and what they may change while the server runs: the log and tracing."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

import grpc
import pytest
from conftest import PATIENCE, Running, publish_times, running_server, times_request

from serving import logs
from serving.access import Finished, Timing
from serving.admin import is_local, require_admin
from serving.authorization import Asker
from serving.batch import Stages
from serving.errors import InvalidInput, NotAllowed
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.tokens import Need
from serving.trace import Tracer


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:50000", True),
        ("ipv4:127.8.9.10:1", True),
        ("ipv6:[::1]:50000", True),
        ("ipv6:%5B::1%5D:50000", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:50000", True),
        ("unix:/run/digits.sock", True),
        ("unix:", True),
        ("ipv4:10.0.0.5:50000", False),
        ("ipv4:0.0.0.0:50000", False),
        ("ipv4:127.0.0.1.example.org:80", False),
        ("ipv6:%5B2001:db8::1%5D:50000", False),
        ("ipv6:%5B::ffff:10.0.0.5%5D:50000", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", False),
        ("ipv4:localhost:80", False),
        ("vsock:2:5000", False),
        ("127.0.0.1:80", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_only_loopback_and_unix_sockets_are_this_machine(peer: str, local: bool) -> None:
    assert is_local(peer) is local


def test_administration_has_to_be_allowed_and_local() -> None:
    here, elsewhere = Asker("ipv4:127.0.0.1:50000"), Asker("ipv4:10.0.0.5:50000")
    require_admin(True, here)
    with pytest.raises(NotAllowed, match="--allow-admin"):
        require_admin(False, here)
    with pytest.raises(NotAllowed, match="on this machine only"):
        require_admin(True, elsewhere)


def test_who_has_the_role_admin_may_administrate_from_anywhere() -> None:
    require_admin(False, Asker("ipv4:10.0.0.5:50000", frozenset({Need.ADMIN})))
    with pytest.raises(NotAllowed, match="a token with the role admin"):
        require_admin(False, Asker("ipv4:10.0.0.5:50000", frozenset({Need.INFER})))


# The log


@pytest.fixture
def root_level() -> Iterator[None]:
    """The log's level is one for the process: as it was, afterwards."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.usefixtures("root_level")
@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"log_verbose_level": 1}, logging.DEBUG),
        ({"log_verbose_level": 3}, logging.DEBUG),
        ({"log_verbose_level": 0}, logging.INFO),
        ({"log_info": False}, logging.WARNING),
        ({"log_info": False, "log_warning": False}, logging.ERROR),
        ({"log_info": False, "log_warning": False, "log_error": False}, logging.CRITICAL),
        ({}, logging.INFO),
    ],
)
def test_log_settings_become_a_level(changes: dict[str, bool | int | str], level: int) -> None:
    logs.change(changes)
    assert logging.getLogger().level == level
    now = logs.settings()
    assert {name: now[name] for name in changes} == {n: min(v, 1) for n, v in changes.items()}


@pytest.mark.usefixtures("root_level")
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"log_file": "/etc/passwd"}, "'log_file' is not supported; there is log_info, "),
        ({"log_info": 1}, "'log_info': 1 is not true or false"),
        ({"log_verbose_level": True}, "'log_verbose_level': True is not a whole number"),
        ({"log_error": "yes"}, "'log_error': 'yes' is not true or false"),
        ({"log_warning": False}, "'log_warning': False contradicts the others"),
        ({"log_verbose_level": 1, "log_info": False}, "'log_info': False contradicts"),
    ],
)
def test_a_log_setting_that_cannot_be_is_named_and_changes_nothing(
    changes: dict[str, bool | int | str], fault: str
) -> None:
    with pytest.raises(InvalidInput, match=fault):
        logs.change(changes)
    assert logging.getLogger().level == logging.INFO


# Tracing


def traced(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Model and request id of each trace line."""
    records = [vars(r) for r in caplog.records if r.name == "serving.trace"]
    return [(each["model"], each["request_id"]) for each in records]


def finished(model: str, request_id: str) -> Finished:
    timing = Timing("1", 0.0, Stages(1, 0.0, 0.0, 0.0))
    return Finished(None, model, "1", request_id, "OK", "", 1, 0, 0, 0.0, 0.0, timing)


def ask(tracer: Tracer, model: str, *numbers: int) -> None:
    for number in numbers:
        tracer.record(finished(model, str(number)))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "serving.trace")
    return caplog


def test_nothing_is_traced_by_default(lines: pytest.LogCaptureFixture) -> None:
    tracer = Tracer()
    ask(tracer, "m", *range(2000))
    assert (tracer.active, traced(lines)) == (False, [])
    assert tracer.settings() == {
        "trace_level": ("OFF",),
        "trace_rate": ("1000",),
        "trace_count": ("-1",),
    }


def test_one_request_in_so_many_is_traced_until_the_count_is_used_up(
    lines: pytest.LogCaptureFixture,
) -> None:
    tracer = Tracer()
    tracer.change({"trace_level": ("TIMESTAMPS",), "trace_rate": ("3",), "trace_count": ("2",)})
    ask(tracer, "m", *range(20))
    assert traced(lines) == [("m", "0"), ("m", "3")]
    tracer.change({"trace_count": ("1",)})  # once more
    ask(tracer, "m", *range(20, 40))
    assert traced(lines)[2:] == [("m", "20")]


def test_a_model_may_have_settings_of_its_own_and_is_counted_by_itself(
    lines: pytest.LogCaptureFixture,
) -> None:
    tracer = Tracer()
    tracer.change({"trace_level": ("TIMESTAMPS",), "trace_rate": ("2",)}, "own")
    for number in range(4):  # in turns: neither's requests count for the other
        ask(tracer, "own", number)
        ask(tracer, "other", number)
    assert traced(lines) == [("own", "0"), ("own", "2")]
    tracer.change({"trace_level": ("TIMESTAMPS",), "trace_rate": ("1",)})
    tracer.change({"trace_level": ("OFF",)}, "own")
    ask(tracer, "own", 5)
    ask(tracer, "other", 5)
    assert traced(lines)[2:] == [("other", "5")]


def test_a_setting_without_values_is_reset(lines: pytest.LogCaptureFixture) -> None:
    tracer = Tracer()
    tracer.change({"trace_level": ("TIMESTAMPS",), "trace_rate": ("1",)})
    tracer.change({"trace_level": ("OFF",), "trace_rate": ("7",)}, "m")
    assert tracer.settings("m")["trace_rate"] == ("7",)
    tracer.change({"trace_rate": (), "trace_level": ()}, "m")
    assert tracer.settings("m") == tracer.settings()
    ask(tracer, "m", 1)
    assert traced(lines) == [("m", "1")]
    tracer.change({"trace_level": ()})
    assert (tracer.active, tracer.settings()["trace_level"]) == (False, ("OFF",))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"trace_file": ("trace.json",)}, "'trace_file' is not supported; there is trace_level, "),
        ({"trace_level": ("TENSORS",)}, "trace_level: expected OFF or TIMESTAMPS"),
        ({"trace_rate": ("0",)}, "trace_rate: expected one whole number from 1"),
        ({"trace_rate": ("1", "2")}, "trace_rate: expected one whole number from 1"),
        ({"trace_rate": ("often",)}, "trace_rate: expected one whole number from 1"),
        ({"trace_count": ("-2",)}, "trace_count: expected one whole number from -1"),
        ({"trace_count": ("9" * 5000,)}, "trace_count: expected one whole number from -1"),
    ],
)
def test_a_trace_setting_that_cannot_be_is_named_and_changes_nothing(
    settings: dict[str, tuple[str, ...]], fault: str
) -> None:
    tracer = Tracer()
    before = tracer.settings()
    with pytest.raises(InvalidInput, match=fault):
        tracer.change({"trace_level": ("TIMESTAMPS",), **settings})
    assert (tracer.settings(), tracer.active) == (before, False)


# Through the RPCs


@pytest.fixture(scope="module")
def administered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("models")
    publish_times(repository)
    with running_server(repository, allow_admin=True, host="0.0.0.0") as running:
        yield running


def change_trace(running: Running, model: str = "", **settings: list[str]) -> dict[str, list[str]]:
    request = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        request.settings[name].value.extend(values)
    answer = running.stub.TraceSetting(request).settings
    return {name: list(each.value) for name, each in answer.items()}


def addresses_elsewhere() -> list[str]:
    """By which others reach this machine: where it has a route to anywhere, one."""
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as unsent:
        unsent.connect(("192.0.2.1", 9))
        return [unsent.getsockname()[0]]
    return []


def test_administration_is_open_to_this_machine_whatever_callers_say_of_themselves(
    administered: Running,
) -> None:
    port = administered.address.rpartition(":")[2]
    request = pb.TraceSettingRequest(model_name="times")
    request.settings["trace_rate"].value.append("1000")
    allowed, local, elsewhere = [], "ipv4:127.0.0.1:1", "ipv4:10.0.0.1:1"
    for address in ("localhost", *addresses_elsewhere()):
        with grpc.insecure_channel(f"{address}:{port}") as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            for said in (local, elsewhere, "unix:"):
                call = stub.TraceSetting.future(
                    request, metadata=(("x-digits-peer", said),), timeout=PATIENCE
                )
                allowed.append(call.code() is grpc.StatusCode.OK)
    assert allowed == [True] * 3 + [False] * (len(allowed) - 3)
    change_trace(administered, "times", trace_rate=[])


def test_a_traced_request_is_one_line_that_says_what_it_cost(
    administered: Running, lines: pytest.LogCaptureFixture
) -> None:
    told = change_trace(administered, "times", trace_level=["TIMESTAMPS"], trace_rate=["1"])
    assert told == {"trace_level": ["TIMESTAMPS"], "trace_rate": ["1"], "trace_count": ["-1"]}
    assert change_trace(administered)["trace_level"] == ["OFF"]
    request = times_request(1, 2, 3)
    request.id = 'no. 5 "quoted"'
    _, call = administered.stub.ModelInfer.with_call(request)
    assert administered.server.inference.wait_until_idle(PATIENCE)
    (facts,) = [vars(r) for r in lines.records if r.name == "serving.trace"]
    assert traced(lines) == [("times", 'no. 5 "quoted"')]
    assert (facts["version"], facts["rows"], facts["batch_rows"]) == ("1", 3, 3)
    spent = facts["queue_seconds"] + facts["compute_infer_seconds"]
    assert 0 < spent < facts["seconds"] < 10
    assert dict(call.trailing_metadata())["model-version"] == "1"
    told = change_trace(administered, "times", trace_level=[], trace_rate=[])
    assert told == change_trace(administered)
    administered.stub.ModelInfer(request)
    assert administered.server.inference.wait_until_idle(PATIENCE)
    assert len(traced(lines)) == 1


def test_an_unknown_model_has_no_trace_settings(administered: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        change_trace(administered, "nosuch", trace_level=["TIMESTAMPS"])
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.usefixtures("root_level")
def test_log_settings_change_what_is_logged(administered: Running) -> None:
    request = pb.LogSettingsRequest()
    request.settings["log_verbose_level"].uint32_param = 1
    settings = administered.stub.LogSettings(request).settings
    assert settings["log_verbose_level"].uint32_param == 1
    assert logging.getLogger().level == logging.DEBUG
    request.settings["log_verbose_level"].uint32_param = 0
    settings = administered.stub.LogSettings(request).settings
    assert [settings[name].bool_param for name in ("log_info", "log_error")] == [True, True]
    request.settings["log_format"].string_param = "ISO8601"
    with pytest.raises(grpc.RpcError) as caught:
        administered.stub.LogSettings(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'log_format' is not supported" in (caught.value.details() or "")
    empty = pb.LogSettingsRequest()
    empty.settings["log_info"].SetInParent()
    with pytest.raises(grpc.RpcError) as caught:
        administered.stub.LogSettings(empty)
    assert caught.value.details() == "log setting 'log_info' has no value"
