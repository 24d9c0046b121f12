"""Several processes on one port: they change together, are counted together, and replace the dead.

Each test reaches the workers over many connections, which the kernel spreads over them by chance:
all sixteen go to one of two once in 30,000 runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    ROOT,
    TRANSPORT,
    TRANSPORTS,
    Digits,
    Process,
    publish_classifier,
    publish_times,
    socket_directories,
    times_request,
    under_load,
    until,
)
from prometheus_client.parser import text_string_to_metric_families

from serving.client import Client
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

CODE = grpc.StatusCode
CONNECTIONS = 16


class Workers:
    """A supervised server in a process group of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.metrics_url = ""
        self.pids: dict[int, int] = {}  # by number

    def started(self) -> Workers:
        """Read the log until all workers are ready."""
        self.metrics_url = self.process.wait_for(r"metrics on (\S+)")[1]
        for number in (0, 1):
            self.pids[number] = int(self.process.wait_for(rf"worker {number} is process (\d+)")[1])
        self.process.address = self.process.wait_for(r"workers listen on (\S+)")[1]
        self.process.wait_for("all 2 workers are ready")
        return self

    @contextlib.contextmanager
    def connections(
        self, count: int = CONNECTIONS
    ) -> Iterator[list[pb_grpc.GRPCInferenceServiceStub]]:
        """Connections of their own, open already, to one worker or the other each."""
        with contextlib.ExitStack() as stack:
            stubs = []
            for _ in range(count):
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.insecure_channel(self.process.address, options)
                stubs.append(pb_grpc.GRPCInferenceServiceStub(stack.enter_context(channel)))
                stubs[-1].ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE, wait_for_ready=True)
            yield stubs

    def metric(self, name: str, **labels: str) -> float:
        text = urllib.request.urlopen(self.metrics_url, timeout=PATIENCE).read().decode()
        samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )

    def kill(self, number: int) -> None:
        """Kill a worker that has no chance to say anything, and return when it is buried."""
        os.kill(self.pids[number], signal.SIGKILL)
        self.process.wait_for(rf"worker {number} .* died with status -9")

    def wait_for_replacement(self, number: int) -> None:
        self.pids[number] = int(self.process.wait_for(rf"worker {number} is process (\d+)")[1])
        self.process.wait_for(rf"worker {number} is ready")


@contextlib.contextmanager
def supervised(repository: Path, *arguments: str) -> Iterator[Workers]:
    """`python -m serving --workers 2`; whatever is left of it is killed in the end."""
    command = [sys.executable, "-m", "serving", "--model-repository", str(repository)]
    ports = () if "--grpc-port" in arguments else ("--grpc-port", "0")
    popen = subprocess.Popen(
        [*command, "--workers", "2", "--metrics-port", "0", "--http-port", "0", *ports, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(LIFETIME, popen.kill)
    watchdog.start()
    try:
        yield Workers(Process(popen, []))
    finally:
        watchdog.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        assert popen.stderr is not None
        popen.stderr.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `times` and `other`."""
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    publish_times(path, "other")
    return path


@pytest.fixture(scope="module")
def workers(repository: Path) -> Iterator[Workers]:
    """Shared by the tests of one server; `times` is served, `other` is not."""
    options = ("--model-control-mode", "explicit", "--load-model", "times", "--allow-admin")
    with supervised(repository, *options) as process:
        yield process.started()


def ready(stubs: list[pb_grpc.GRPCInferenceServiceStub], name: str) -> set[bool]:
    request = pb.ModelReadyRequest(name=name)
    return {stub.ModelReady(request, timeout=PATIENCE).ready for stub in stubs}


def inferences(stub: pb_grpc.GRPCInferenceServiceStub) -> tuple[int, int]:
    """Of `times`: requests that succeeded, and rows."""
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="times")).model_stats
    return stats.inference_stats.success.count, stats.inference_count


def change_trace(stub: pb_grpc.GRPCInferenceServiceStub, rate: str) -> None:
    request = pb.TraceSettingRequest(model_name="times")
    request.settings["trace_rate"].value.append(rate)
    stub.TraceSetting(request)


def change_log(stub: pb_grpc.GRPCInferenceServiceStub, info: bool) -> None:
    request = pb.LogSettingsRequest()
    request.settings["log_info"].bool_param = info
    stub.LogSettings(request)


def trace_rates(stubs: list[pb_grpc.GRPCInferenceServiceStub]) -> set[str]:
    request = pb.TraceSettingRequest(model_name="times")
    return {stub.TraceSetting(request).settings["trace_rate"].value[0] for stub in stubs}


def logs_info(stubs: list[pb_grpc.GRPCInferenceServiceStub]) -> set[bool]:
    request = pb.LogSettingsRequest()
    return {stub.LogSettings(request).settings["log_info"].bool_param for stub in stubs}


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def test_loading_and_unloading_acts_on_all_workers_before_it_is_answered(workers: Workers) -> None:
    with workers.connections() as stubs:
        for _ in range(3):
            assert ready(stubs, "other") == {False}
            stubs[0].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="other"))
            assert ready(stubs, "other") == {True}
            stubs[1].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        code, details = refusal(
            lambda: stubs[0].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="none"))
        )
        assert code == CODE.NOT_FOUND
        assert details == "the model repository holds no model 'none'"


def test_the_gauges_of_load_are_those_of_all_workers_and_end_at_zero(workers: Workers) -> None:
    times = {"model": "times", "version": "1"}
    before = workers.metric("inference_request_rows_sum", **times)
    with workers.connections() as stubs:
        futures = [stub.ModelInfer.future(times_request(1, 2, 3)) for stub in stubs for _ in "1234"]
        assert {future.code() for future in futures} == {CODE.OK}
        read = sum(times_request(1, 2, 3).ByteSize() for _ in futures)
        assert workers.metric("inference_request_rows_sum", **times) - before == 3 * len(futures)
        assert workers.metric("inference_request_bytes_total", **times) >= read
    assert workers.metric("inference_in_flight_limit_requests") == 2 * (256 + 64)
    assert workers.metric("inference_queue_limit_requests", **times) == 2 * 256
    if TRANSPORT == "native":
        assert workers.metric("inference_connections_limit") == 2 * 10_000
        until(lambda: workers.metric("inference_connections") == 0)
    assert workers.metric("inference_instances", **times) == 2
    assert workers.metric("inference_model_info", **times, device="cpu") == 1
    names = ("in_flight_requests", "pending_requests", "instances_busy")
    # A caller has its answer a moment before the worker is done.
    until(lambda: not any(workers.metric(f"inference_{name}") for name in names))


def test_log_and_trace_settings_act_on_all_workers_before_they_are_answered(
    workers: Workers,
) -> None:
    with workers.connections() as stubs:
        change_trace(stubs[0], "7")
        assert trace_rates(stubs) == {"7"}
        change_log(stubs[0], False)
        assert logs_info(stubs) == {False}
        change_log(stubs[1], True)
        assert logs_info(stubs) == {True}
        code, details = refusal(lambda: change_trace(stubs[0], "often"))
        assert code == CODE.INVALID_ARGUMENT
        assert details.startswith("trace_rate: expected one whole number")


def test_statistics_and_metrics_are_the_sum_over_all_workers(workers: Workers) -> None:
    with workers.connections() as stubs:
        requests, rows = inferences(stubs[0])
        for stub in stubs:
            stub.ModelInfer(times_request(1, 2, 3))
        expected = requests + CONNECTIONS, rows + 3 * CONNECTIONS
        assert {inferences(stub) for stub in stubs} == {expected}
        total = workers.metric("inference_requests_total", model="times", code="OK")
        assert total == expected[0]
        assert workers.metric("inference_inferences_total", model="times") == expected[1]
        assert workers.metric("inference_model_ready", model="times", version="1") == 1


def test_a_worker_that_dies_is_replaced_by_one_that_knows_what_was_changed(
    workers: Workers,
) -> None:
    with workers.connections(4) as stubs:
        for stub in stubs:
            stub.ModelInfer(times_request(1))
        stubs[0].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="other"))
        stubs[0].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="times"))
        stubs[0].RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="times"))
        change_trace(stubs[0], "5")
        before = inferences(stubs[0])
    workers.kill(1)
    waiting = threading.Thread(target=workers.wait_for_replacement, args=(1,))
    waiting.start()
    answered = 0
    while waiting.is_alive() or not answered:  # the new one listens only when it is ready
        with workers.connections(1) as (stub,):
            assert ready([stub], "other") == {True}
            assert stub.ModelInfer(times_request(1)).model_version == "1"
            answered += 1
    waiting.join()
    with workers.connections() as stubs:
        assert ready(stubs, "other") == {True}
        assert ready(stubs, "times") == {True}
        assert trace_rates(stubs) == {"5"}
        assert all(stub.ServerReady(pb.ServerReadyRequest()).ready for stub in stubs)
        assert inferences(stubs[0]) == (before[0] + answered, before[1] + answered)
        assert workers.metric("inference_worker_restarts_total") == 1
        stubs[0].RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        assert ready(stubs, "other") == {False}


def test_a_new_version_reaches_all_workers_and_no_request_fails(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with supervised(tmp_path, "--poll-interval", "0.1") as process:
        workers = process.started()
        with under_load(workers.process.address, clients=4) as load:
            for version in ("2", "3"):
                publish_times(tmp_path)
                assert load.wait_for(version)
            assert load.wait_for_answers(200)
        assert load.faults == []
        stop_and_check_drain(workers, lambda pid: os.kill(pid, signal.SIGTERM))


def test_callers_who_ask_again_lose_nothing_when_each_worker_is_killed(
    tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    over, answers = threading.Event(), Counter[int]()
    with supervised(tmp_path) as process, ThreadPoolExecutor(4) as pool:
        workers = process.started()

        def ask(caller: int) -> None:
            with Client(workers.process.address, retry=True) as client:
                while not over.is_set():
                    answer = client.classify(digits.images[:8], "classifier", timeout=PATIENCE)
                    labels.add(tuple(answer.labels))
                    answers[caller] += 1

        labels: set[tuple[str, ...]] = set()
        calls = [pool.submit(ask, caller) for caller in range(4)]
        try:
            for number in (0, 1):
                workers.kill(number)
                workers.wait_for_replacement(number)
                wanted = Counter({caller: answers[caller] + 1 for caller in range(4)})
                until(lambda wanted=wanted: wanted <= answers or any(c.done() for c in calls))  # type: ignore[misc]
        finally:
            over.set()
        assert [call.result() for call in calls] == [None] * 4
        assert len(labels) == 1


@pytest.mark.lane
def test_no_request_fails_while_sighup_replaces_all_workers_one_after_the_other(
    tmp_path: Path,
) -> None:
    publish_times(tmp_path)
    with supervised(tmp_path, "--transport", "native") as process:
        workers = process.started()
        before = dict(workers.pids)
        with under_load(workers.process.address, clients=4) as load:
            workers.process.popen.send_signal(signal.SIGHUP)
            for number in (0, 1):
                workers.process.wait_for(rf"worker {number} .*has ended")
                workers.wait_for_replacement(number)
            assert load.wait_for_answers(200)
        assert load.faults == []
        assert not set(before.values()) & set(workers.pids.values())
        assert workers.metric("inference_requests_total") >= load.answers


def test_ctrl_c_which_reaches_all_processes_lets_what_is_in_flight_finish(
    repository: Path,
) -> None:
    with supervised(repository, "--max-queue-delay", "1") as process:
        stop_and_check_drain(process.started(), lambda pid: os.killpg(pid, signal.SIGINT))


def stop_and_check_drain(workers: Workers, stop: Callable[[int], None]) -> None:
    """With requests in flight at all workers: they are answered, and the exit status is 0."""
    with workers.connections() as stubs:
        futures = [stub.ModelInfer.future(times_request(4), timeout=PATIENCE) for stub in stubs]
        for stub in stubs:
            stub.ServerLive(pb.ServerLiveRequest())  # sent later on the same connection
        stop(workers.process.popen.pid)
        assert {future.result().model_name for future in futures} == {"times"}
    assert workers.process.finish() == 0
    assert workers.process.log[-1].endswith("drained\n")
    assert not [line for line in workers.process.log if "ERROR" in line or "Traceback" in line]


def loopbacks() -> list[str]:
    """This machine's own addresses, one of each family that it has."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return ["127.0.0.1", "[::1]"]
    return ["127.0.0.1"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_on_every_address_of_the_machine_all_workers_answer_on_each(
    repository: Path, transport: str
) -> None:
    options = ("--host", "0.0.0.0", "--transport", transport, "--access-log", "1")
    with supervised(repository, *options) as process:
        workers = process.started()
        port = workers.process.address.rpartition(":")[2]
        for host in loopbacks():
            workers.process.address = f"{host}:{port}"
            with workers.connections() as stubs:
                for stub in stubs:
                    request = times_request(1)
                    request.id = host
                    assert stub.ModelInfer(request, timeout=PATIENCE).id == host
        workers.process.popen.send_signal(signal.SIGTERM)
        assert workers.process.finish() == 0
    log = "".join(workers.process.log)
    answered = set(re.findall(r" serving\.access\[(\d)\]: .* request_id=(\S+)", log))
    assert answered == {(number, host) for number in "01" for host in loopbacks()}


@pytest.mark.lane
def test_nobody_else_may_enter_the_directory_of_the_workers_sockets(repository: Path) -> None:
    with supervised(repository, "--transport", "native") as process:
        workers = process.started()
        places = [socket_directories(pid) for pid in workers.pids.values()]
        assert all(places)
        assert {stat.S_IMODE(each.stat().st_mode) for each in set.union(*places)} == {0o700}


def test_workers_end_by_themselves_when_the_supervisor_is_killed(repository: Path) -> None:
    with supervised(repository) as process:
        workers = process.started()
        descriptors = [os.pidfd_open(pid) for pid in workers.pids.values()]
        workers.process.popen.kill()
        for descriptor in descriptors:
            assert select.select([descriptor], [], [], PATIENCE)[0] == [descriptor]
            os.close(descriptor)


def test_what_keeps_workers_from_starting_is_one_clear_line(
    tmp_path: Path, repository: Path
) -> None:
    with supervised(tmp_path / "nowhere") as process:
        assert process.process.finish() == 1
        said = f"error: --model-repository: {tmp_path / 'nowhere'}: no such model repository\n"
        assert problems(process.process.log) == [said]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with supervised(repository, "--grpc-port", str(port)) as process:
            assert process.process.finish() == 1
            where = f"127.0.0.1:{port}"
            said = f"error: --grpc-port: cannot listen on {where}: Address already in use\n"
            assert process.process.log == [said]


def problems(log: list[str]) -> list[str]:
    """All but the lines of the log below warnings."""
    return [line for line in log if not re.search(r" INFO ", line)]
