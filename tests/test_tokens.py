"""Bearer tokens over gRPC, both transports: the file, each RPC by its need, rates, new tokens; and
that no token is ever shown."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    Running,
    publish_times,
    server_process,
    times_request,
    until,
)
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.authorization import RPCS, Authorization
from serving.client import Client
from serving.config import ServerConfig
from serving.errors import NotAllowed, RateLimited, StartupError, Unauthenticated
from serving.pb import digits_pb2, inference_pb2
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.tokens import Need, TokensError, bearer, holder, parse

CODE = grpc.StatusCode
# Each with one role, none of which implies another.
SECRETS = {role: f"{role}-{'0123456789abcdef' * 2}" for role in ("infer", "feedback", "admin")}
STRANGER = "stranger-0123456789abcdef0123456789"
FILE = f"""
# who may what
a infer {SECRETS["infer"]}
b feedback sha256:{hashlib.sha256(SECRETS["feedback"].encode()).hexdigest()}
c admin {SECRETS["admin"]}
"""
SERVICES: tuple[ServiceDescriptor, ...] = (
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    digits_pb2.DESCRIPTOR.services_by_name["Digits"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
Serve = Callable[..., AbstractContextManager[Running]]


# The file


def test_a_line_has_a_name_roles_a_token_or_its_hash_and_a_rate() -> None:
    text = f"{FILE}\nd  infer,feedback\t{STRANGER} rate=2.5/s burst=7"
    grants = {each.name: each for each in parse(text)}
    assert {name: sorted(each.roles) for name, each in grants.items()} == {
        "a": ["infer"],
        "b": ["feedback"],
        "c": ["admin"],
        "d": ["feedback", "infer"],
    }
    assert grants["b"].digest == hashlib.sha256(SECRETS["feedback"].encode()).digest()
    assert (grants["d"].rate, grants["d"].burst) == (2.5, 7)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no token"),
        ("# only words", "holds no token"),
        (f"a infer {STRANGER}\nb {STRANGER}", "line 2 is not NAME ROLE"),
        (f"{STRANGER} infer {SECRETS['infer']}", "line 1 begins with no name"),
        (f"a {STRANGER} infer", "line 1 has an unknown role; there is infer, feedback, admin"),
        ("a infer hunter2", "line 1 has a token of 7 characters, which takes 32 to 1024"),
        (f"a infer {STRANGER}%", "line 1 has a token of other characters"),
        (f"a infer sha256:{'0' * 63}", "line 1 has a token of other characters"),
        (f"a infer {STRANGER} {SECRETS['infer']}", "line 1 ends with something else than rate"),
        (f"a infer {STRANGER} rate=0/s", "line 1 ends with something else than rate"),
        (f"a infer {STRANGER} burst=2", "line 1 has a burst without a rate"),
        (f"a infer {STRANGER}\na admin {SECRETS['admin']}", "has the name 'a' twice"),
        (f"a infer {STRANGER}\nb admin {STRANGER}", "has one token under two names"),
        ("\n".join(f"n{i} infer {STRANGER}{i}" for i in range(257)), "holds 257 tokens"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_by_its_line_and_nothing_of_a_token_is_shown(
    text: str, fault: str
) -> None:
    with pytest.raises(TokensError, match=fault) as raised:
        parse(text)
    secrets = (STRANGER, "hunter2", *SECRETS.values())
    assert not any(secret in str(raised.value) for secret in secrets)


def test_a_server_does_not_start_with_a_file_that_is_no_good(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a infer hunter2")
    with pytest.raises(StartupError, match=r"--token-file: .*/tokens: line 1 has a token of 7"):
        Authorization(ServerConfig(token_file=tmp_path / "tokens"))
    with pytest.raises(StartupError, match="--token-file: /nowhere: No such file"):
        Authorization(ServerConfig(token_file=Path("/nowhere")))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartupError, match="is no file"):
        Authorization(ServerConfig(token_file=tmp_path / "pipe"))
    with pytest.raises(StartupError, match="DIGITS_TOKENS: line 1 is not NAME"):
        Authorization(ServerConfig(tokens="a"))


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        (["Bearer abc"], b"abc"),
        (["bearer  abc "], b"abc"),
        ([b"BEARER a=="], b"a=="),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Basic abc"], None),
        (["abc"], None),
        ([], None),
        (["Bearer a", "Bearer a"], None),
        (["Bearer \u20ac"], b"?"),
    ],
)
def test_a_call_has_one_token_or_none(headers: list[str | bytes], token: bytes | None) -> None:
    assert bearer(headers) == token


def test_a_token_is_found_wherever_it_stands_among_others() -> None:
    grants = parse(FILE)
    held = [holder(grants, SECRETS[role].encode()) for role in SECRETS]
    assert held == list(grants)
    assert holder(grants, SECRETS["infer"][:-1].encode()) is None
    assert holder(grants, b"") is None


def test_without_tokens_everything_is_allowed() -> None:
    authorization = Authorization(ServerConfig())
    for need in Need:
        authorization.require(need, [])
    assert (authorization.required, authorization.roles(["Bearer x"])) == (False, frozenset())


@pytest.mark.parametrize("workers", [1, 4])
def test_each_worker_has_its_share_of_a_rate(workers: int) -> None:
    tokens = f"a infer {STRANGER} rate=0.4/s burst=8"
    authorization = Authorization(ServerConfig(tokens=tokens, workers=workers))
    for _ in range(8 // workers):
        authorization.require(Need.TOKEN, [f"Bearer {STRANGER}"])
    with pytest.raises(RateLimited) as refused:
        authorization.require(Need.TOKEN, [f"Bearer {STRANGER}"])
    assert 1.5 * workers < refused.value.retry_after <= 2.5 * workers
    # What is not charged, or is refused for another reason, is none of the rate's.
    authorization.require(Need.TOKEN, [f"Bearer {STRANGER}"], charge=False)
    with pytest.raises(NotAllowed):
        authorization.require(Need.FEEDBACK, [f"Bearer {STRANGER}"])
    with pytest.raises(Unauthenticated):
        authorization.require(Need.TOKEN, ["Bearer somebody-elses"])


# Each RPC


def test_every_rpc_of_every_service_has_a_row_and_every_row_is_one() -> None:
    there = {f"/{each.full_name}/{rpc.name}" for each in SERVICES for rpc in each.methods}
    assert there == set(RPCS)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    return path


@pytest.fixture(scope="module")
def guarded(
    repository: Path, serve: Serve, transport: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(FILE)
    options = {"model_control_mode": "explicit", "load_model": ("*",)}
    with serve(repository, transport=transport, token_file=file, **options) as running:
        yield running


def code_of(running: Running, path: str, token: str | None) -> tuple[grpc.StatusCode, str]:
    """What a call without any message gets, and the words; streams are closed at once."""
    service, _, name = path[1:].rpartition("/")
    rpc = next(s for s in SERVICES if s.full_name == service).methods_by_name[name]
    request = GetMessageClass(rpc.input_type)().SerializeToString()
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    kind = "stream" if rpc.client_streaming else "unary"
    call = getattr(running.channel, f"{kind}_{'stream' if rpc.server_streaming else 'unary'}")
    sent = iter([]) if rpc.client_streaming else request
    try:
        answer = call(path, None, None)(sent, metadata=metadata, timeout=PATIENCE)
        if rpc.server_streaming:
            next(iter(answer), None)
            answer.cancel()
    except grpc.RpcError as error:
        told: Any = error
        return told.code(), told.details()
    return CODE.OK, ""


REFUSED = (CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED)


@pytest.mark.parametrize("path", sorted(RPCS))
def test_an_rpc_is_for_those_whose_token_has_what_it_needs(guarded: Running, path: str) -> None:
    need = RPCS[path]
    for token in (None, STRANGER):
        code, details = code_of(guarded, path, token)
        assert (code is CODE.UNAUTHENTICATED) == (need is not Need.NOTHING), details
    for role, secret in SECRETS.items():
        code, details = code_of(guarded, path, secret)
        allowed = need in (Need.NOTHING, Need.TOKEN, role)
        assert (code in REFUSED) == (not allowed), details
        if not allowed:
            assert (code, details) == (
                CODE.PERMISSION_DENIED,
                f"the token has not the role {need}",
            )


def test_what_the_server_tells_of_itself_is_what_the_table_has(guarded: Running) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    metadata = (("authorization", f"Bearer {SECRETS['infer']}"),)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    (told,) = stub.ServerReflectionInfo(iter([asked]), metadata=metadata, timeout=PATIENCE)
    names = {each.name for each in told.list_services_response.service}
    assert names == {each.full_name for each in SERVICES}


def test_an_unknown_method_is_told_from_others_to_holders_only(guarded: Running) -> None:
    call = guarded.channel.unary_unary("/x.Y/Z", None, None)
    codes = []
    for metadata in ((), (("authorization", f"Bearer {SECRETS['infer']}"),)):
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=metadata, timeout=PATIENCE)
        codes.append(refused.value.code())
    assert codes == [CODE.UNAUTHENTICATED, CODE.UNIMPLEMENTED]


def test_settings_may_be_read_by_holders_and_changed_by_administrators(guarded: Running) -> None:
    changed = inference_pb2.LogSettingsRequest()
    changed.settings["log_verbose_level"].uint32_param = 0
    for role, secret in SECRETS.items():
        metadata = (("authorization", f"Bearer {secret}"),)
        read = guarded.stub.LogSettings(inference_pb2.LogSettingsRequest(), metadata=metadata)
        assert "log_info" in read.settings
        if role == "admin":
            guarded.stub.LogSettings(changed, metadata=metadata, timeout=PATIENCE)
        else:
            with pytest.raises(grpc.RpcError) as refused:
                guarded.stub.LogSettings(changed, metadata=metadata, timeout=PATIENCE)
            assert refused.value.code() is CODE.PERMISSION_DENIED


def test_our_client_sends_its_token(guarded: Running) -> None:
    with Client(guarded.address, token=SECRETS["infer"]) as client:
        assert [each.name for each in client.models()] == ["times"]


def with_token(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


def infer(running: Running, secret: str, count: int = 1) -> list[grpc.StatusCode]:
    """What becomes of so many requests, one after the other."""
    codes = []
    for _ in range(count):
        call = running.stub.ModelInfer.future(
            times_request(2.0), metadata=with_token(secret), timeout=PATIENCE
        )
        codes.append(call.code())
    return codes


def test_a_connection_may_change_its_token_with_each_call(guarded: Running) -> None:
    secrets = [SECRETS["infer"], STRANGER, SECRETS["infer"], SECRETS["admin"], SECRETS["infer"]]
    codes = [infer(guarded, secret)[0] for secret in secrets]
    assert codes == [
        CODE.OK,
        CODE.UNAUTHENTICATED,
        CODE.OK,
        CODE.PERMISSION_DENIED,
        CODE.OK,
    ]


def test_two_tokens_in_a_call_are_none(guarded: Running) -> None:
    call = guarded.stub.ModelInfer.future(
        times_request(2.0), metadata=2 * with_token(SECRETS["infer"]), timeout=PATIENCE
    )
    assert call.code() is CODE.UNAUTHENTICATED


def scraped(running: Running, family: str) -> dict[str, float]:
    """What a family's series of no model show, by reason or code."""
    with urllib.request.urlopen(running.metrics_url, timeout=PATIENCE) as page:
        text = page.read().decode()
    found = re.findall(rf"^{family}{{(.*)}} (\S+)$", text, re.M)
    labels = [(dict(re.findall(r'(\w+)="(.*?)"', each)), value) for each, value in found]
    return {
        each.get("reason") or each["code"]: float(value)
        for each, value in labels
        if each["model"] == ""
    }


def test_inference_that_is_refused_is_counted_by_why(
    repository: Path, serve: Serve, transport: str
) -> None:
    tokens = f"{FILE}\nslow infer {STRANGER} rate=0.001/s burst=1"
    with serve(repository, transport=transport, tokens=tokens) as running:
        assert infer(running, "wrong") == [CODE.UNAUTHENTICATED]
        assert infer(running, SECRETS["admin"]) == [CODE.PERMISSION_DENIED]
        assert infer(running, STRANGER, 2) == [CODE.OK, CODE.RESOURCE_EXHAUSTED]
        reasons = scraped(running, "inference_rejected_total")
        names = ("unauthenticated", "not_allowed", "rate_limited")
        assert [reasons[name] for name in names] == [1, 1, 1]
        codes = scraped(running, "inference_requests_total")
        assert (codes["UNAUTHENTICATED"], codes["PERMISSION_DENIED"]) == (1, 1)


def test_what_is_beyond_a_rate_is_refused_and_told_when_to_come_again(
    repository: Path, serve: Serve, transport: str
) -> None:
    tokens = f"{FILE}\nslow infer {STRANGER} rate=0.01/s burst=3"
    with serve(repository, transport=transport, tokens=tokens) as running:
        assert infer(running, STRANGER, 3) == 3 * [CODE.OK]
        call = running.stub.ModelInfer.future(
            times_request(2.0), metadata=with_token(STRANGER), timeout=PATIENCE
        )
        assert call.code() is CODE.RESOURCE_EXHAUSTED
        assert call.details() == "the token has had as many calls as it may"
        trailers = dict(call.trailing_metadata())
        assert 90_000 < int(trailers["grpc-retry-pushback-ms"]) <= 100_000
        # One rate for all that the token asks; another's is untouched.
        with pytest.raises(grpc.RpcError) as refused:
            running.stub.ServerMetadata(
                inference_pb2.ServerMetadataRequest(), metadata=with_token(STRANGER)
            )
        assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
        assert infer(running, SECRETS["infer"], 5) == 5 * [CODE.OK]


def test_each_request_of_a_stream_is_one_of_its_tokens_rate(
    repository: Path, serve: Serve, transport: str
) -> None:
    tokens = f"slow infer {STRANGER} rate=0.001/s burst=2"
    with serve(repository, transport=transport, tokens=tokens) as running:
        requests = iter([times_request(1.0), times_request(2.0), times_request(3.0)])
        answers = running.stub.ModelStreamInfer(
            requests, metadata=with_token(STRANGER), timeout=PATIENCE
        )
        faults = sorted(each.error_message for each in answers)
        assert faults == ["", "", "the token has had as many calls as it may"]


def test_a_new_file_holds_at_once_also_for_streams_and_a_broken_one_is_logged_once(
    repository: Path,
    serve: Serve,
    transport: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "serving.tokens")
    file = tmp_path / "tokens"
    file.write_text(FILE)
    going_on = queue.SimpleQueue[inference_pb2.ModelInferRequest | None]()
    with serve(repository, transport=transport, token_file=file) as running:
        stream: Any = running.stub.ModelStreamInfer(
            iter(going_on.get, None), metadata=with_token(SECRETS["infer"]), timeout=LIFETIME
        )
        going_on.put(times_request(1.0))
        assert next(stream).error_message == ""
        replace(file, f"z infer {STRANGER}\n")
        until(lambda: infer(running, STRANGER) == [CODE.OK])
        assert infer(running, SECRETS["infer"]) == [CODE.UNAUTHENTICATED]
        going_on.put(times_request(1.0))
        assert next(stream).error_message == "the token is not known"
        going_on.put(None)

        replace(file, "z infer hunter2\n")
        until(lambda: "the tokens before stay" in caplog.text)
        replace(file, f"y infer {SECRETS['admin']}")  # the next look finds it
        until(lambda: infer(running, SECRETS["admin"]) == [CODE.OK])
    assert caplog.text.count("the tokens before stay") == 1
    assert "was read again: z" in caplog.text
    assert not any(secret in caplog.text for secret in ("hunter2", STRANGER, *SECRETS.values()))


def replace(file: Path, text: str) -> None:
    """As who writes secrets does: at once, by a rename."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


@pytest.mark.parametrize("host", ["127.0.0.1"])
def test_allow_admin_lets_holders_on_this_machine_administrate_and_nobody_else(
    repository: Path, serve: Serve, transport: str, host: str
) -> None:
    options = {"model_control_mode": "explicit", "allow_admin": True, "host": host}
    with serve(repository, transport=transport, tokens=FILE, **options) as running:
        load = inference_pb2.RepositoryModelLoadRequest(model_name="times")
        with pytest.raises(grpc.RpcError) as refused:
            running.stub.RepositoryModelLoad(load, timeout=PATIENCE)
        assert refused.value.code() is CODE.UNAUTHENTICATED
        metadata = with_token(SECRETS["infer"])
        assert running.stub.RepositoryModelLoad(load, metadata=metadata).is_loaded


# Nowhere


def test_a_token_is_in_no_repr() -> None:
    shown = repr((parse(FILE), ServerConfig(tokens=FILE), Authorization(ServerConfig(tokens=FILE))))
    digests = [hashlib.sha256(each.encode()).hexdigest() for each in SECRETS.values()]
    assert not any(each in shown for each in (*SECRETS.values(), *digests))


def test_tokens_are_nowhere_to_be_seen_of_a_whole_server(
    repository: Path, transport: str, tmp_path: Path
) -> None:
    """Two workers, told by the environment, that log all they can; asked rightly and wrongly."""
    arguments = ["--model-repository", str(repository), "--workers=2", "--log-level=debug"]
    arguments += ["--access-log=1", "--log-format=json", "--transport", transport]
    with server_process(*arguments, environ={"DIGITS_TOKENS": FILE}) as process:
        port = process.wait_for(r"workers listen on \S+:(\d+)")[1]
        process.wait_for("all 2 workers are ready")
        for number in range(8):
            # Each a connection of its own, of which the workers get some each.
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"localhost:{port}", options) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                for secret in (*SECRETS.values(), STRANGER):
                    call = stub.ModelInfer.future(
                        times_request(number), metadata=with_token(secret), timeout=PATIENCE
                    )
                    assert (call.code() is CODE.OK) == (secret == SECRETS["infer"])
                    assert secret not in str(call.exception())
        shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True)
        process.popen.terminate()
        process.finish()
    log = "".join(process.log)
    assert '"code": "UNAUTHENTICATED"' in log
    for secret in (*SECRETS.values(), STRANGER):
        assert secret not in log
        assert secret not in shown.stdout
