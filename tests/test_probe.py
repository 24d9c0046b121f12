"""A version that no longer reproduces its manifest gets no requests until it does again."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import (
    CLASSIFIER_OUTPUTS,
    IMAGES,
    PATIENCE,
    THREES_AND_SEVENS,
    Digits,
    Running,
    once_within,
    publish_times,
    running_server,
    save,
    save_classifier,
    server_process,
    times_request,
    until,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from model_repository import HOLDOUT, ONNX_PLATFORM, Draft, Variant, publish, read_manifest, staging
from serving import holdout, model
from serving.batch import Answer, Outcome, Tensors
from serving.config import ServerConfig
from serving.counter_directory import read
from serving.device import Runtime
from serving.errors import BatcherClosed, DeadlineExceeded, ModelNotReady, QueueFull
from serving.families import Exported
from serving.holdout import Holdout
from serving.metrics import Metrics
from serving.model import Model
from serving.pb import digits_pb2 as digits_pb
from serving.pb import digits_pb2_grpc as digits_grpc
from serving.pb import inference_pb2 as pb
from serving.probe import Prober
from serving.registry import ModelRegistry, ServedModel, State

OFTEN = 0.05  # seconds between two probes
HEALTH = health_pb2.HealthCheckResponse
CODE = grpc.StatusCode
Run = Callable[[Tensors], Tensors]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def publish_probed(
    repository: Path,
    digits: Digits,
    write: Callable[[Path, Digits], None] = save_classifier,
    images: int = 50,
) -> Path:
    """Publish `proven`, whose holdout has the labels that a sound classifier gives."""
    with staging(repository) as directory:
        write(directory / "model.onnx", digits)
        save_classifier(directory / "sound.onnx", digits)
        rows = digits.images[:images]
        sound = onnxruntime.InferenceSession(directory / "sound.onnx").run(
            ["labels"], {"images": rows}
        )
        (directory / "sound.onnx").unlink()
        np.savez(directory / HOLDOUT, images=rows, labels=sound[0])
        variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", 1.0, 1.0)
        facts: dict[str, object] = {"labels": THREES_AND_SEVENS}
        return publish(directory, Draft("proven", (IMAGES,), CLASSIFIER_OUTPUTS, (variant,), facts))


def save_brittle(path: Path, digits: Digits) -> None:
    """The classifier, but with classes swapped in batches of 3 to 10 rows: at load it passes, as
    its holdout is asked in larger ones."""
    save_classifier(path, digits)
    graph = onnx.load(path).graph
    scores = next(node for node in graph.node if node.op_type == "Gemm")
    scores.output[0] = "sound"
    nodes = [
        helper.make_node("Shape", ["images"], ["rows"], end=1),
        helper.make_node("Greater", ["rows", "two"], ["many"]),
        helper.make_node("Less", ["rows", "eleven"], ["few"]),
        helper.make_node("And", ["many", "few"], ["brittle"]),
        helper.make_node("Neg", ["sound"], ["swapped"]),
        helper.make_node("Where", ["brittle", "swapped", "sound"], ["scores"]),
    ]
    at = list(graph.node).index(scores) + 1
    rest = list(graph.node)[at:]
    del graph.node[at:]
    graph.node.extend([*nodes, *rest])
    for name, value in (("two", 2), ("eleven", 11)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    save(graph, path)


class Corruptible:
    """The model of a version's own file in a session whose weights lie in memory that is ours."""

    def __init__(self, directory: Path) -> None:
        path = directory / "model.onnx"
        weights = next(i for i in onnx.load(path).graph.initializer if i.name == "weights")
        self._sound = numpy_helper.to_array(weights)
        self._memory = self._sound.copy()
        options = onnxruntime.SessionOptions()
        # So that the session keeps no copy of its own.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy(self._memory)
        options.add_initializer("weights", self._value)
        self._session = onnxruntime.InferenceSession(path, options)

    def run(self, inputs: Tensors) -> Tensors:
        names = ["probabilities", "labels"]
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def corrupt(self) -> None:
        self._memory[:, 1] = -8.0

    def restore(self) -> None:
        self._memory[:] = self._sound


def corruptible(running: Running, directory: Path) -> Corruptible:
    """Put the session whose memory is ours in the place of the one that serves the version."""
    registry = running.server.inference.registry
    sound = registry.find("proven", int(directory.name))
    assert sound
    session = Corruptible(directory)
    put = dataclasses.replace(sound.model, run=session.run)
    replaced = registry.add(ServedModel(put, ServerConfig(), sound.metrics))
    assert replaced is sound
    assert replaced.batcher.close(PATIENCE)
    return session


@contextmanager
def watch(running: Running, name: str) -> Iterator[Callable[[int], None]]:
    """Wait until the model's health is that status."""
    request = health_pb2.HealthCheckRequest(service=name)
    statuses = health_pb2_grpc.HealthStub(running.channel).Watch(request, timeout=PATIENCE)

    def wait_for(status: int) -> None:
        assert any(each.status == status for each in statuses)

    try:
        yield wait_for
    finally:
        statuses.cancel()


def ask(running: Running, images: NDArray[np.uint8], version: str = "") -> pb.ModelInferResponse:
    request = pb.ModelInferRequest(
        model_name="proven", model_version=version, raw_input_contents=[images.tobytes()]
    )
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return running.stub.ModelInfer(request, timeout=PATIENCE)


def labels(answer: pb.ModelInferResponse) -> list[int]:
    return list(np.frombuffer(answer.raw_output_contents[1], np.int64))


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def scrape(running: Running) -> Samples:
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **more: str) -> float | None:
    labels = {"model": "proven", "version": "1"} | more
    return found.get((f"inference_{name}", frozenset(labels.items())))


def scraped_when(running: Running, name: str, least: float, **more: str) -> Samples:
    """What /metrics shows once that value is there and large enough."""
    end = time.monotonic() + PATIENCE
    while (value(found := scrape(running), name, **more) or -1.0) < least:
        assert time.monotonic() < end
    return found


def index(running: Running) -> dict[str, tuple[str, str]]:
    models = running.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    return {each.version: (each.state, each.reason) for each in models}


def is_ready(running: Running, version: str = "") -> bool:
    request = pb.ModelReadyRequest(name="proven", version=version)
    return running.stub.ModelReady(request).ready


FAULT = (
    r"does not reproduce its manifest: accuracy 0\.\d{4} on its 50 holdout rows,"
    r" at least 0\.9900 is required"
)


# A real server


def test_a_version_is_probed_when_it_was_loaded_and_callers_counts_do_not_show_it(
    tmp_path: Path, digits: Digits
) -> None:
    publish_probed(tmp_path, digits)
    with running_server(tmp_path, probe_interval=0.0) as running:
        found = scraped_when(running, "probe_passed", 1.0)
        assert value(found, "accuracy_ratio", source="holdout") == 1.0
        assert value(found, "accuracy_ratio", source="probe") == 1.0
        assert value(found, "probe_failures_total") == 0
        ask(running, digits.images[:3])
        found = scrape(running)
    for name in ("inferences_total", "batch_rows_sum"):
        assert value(found, name) == 3
    for name in ("executions_total", "request_seconds_count", "queue_seconds_count"):
        assert value(found, name) == 1
    assert value(found, "requests_total", code="OK") == 1
    assert value(found, "pending_requests") == 0


def test_corrupted_memory_takes_a_model_out_of_service_until_it_is_right_again(
    tmp_path: Path, digits: Digits
) -> None:
    directory = publish_probed(tmp_path, digits)
    with running_server(tmp_path, probe_interval=OFTEN) as running:
        session = corruptible(running, directory)
        with watch(running, "proven") as model_is, watch(running, "") as server_is:
            model_is(HEALTH.SERVING)
            server_is(HEALTH.SERVING)
            session.corrupt()
            model_is(HEALTH.NOT_SERVING)
            server_is(HEALTH.NOT_SERVING)
            code, details = refusal(lambda: ask(running, digits.images[:1]))
            assert code == CODE.UNAVAILABLE
            assert details.startswith("model 'proven' version 1 is not served: does not reproduce")
            state, reason = index(running)["1"]
            assert (state, f"model 'proven' version 1 is not served: {reason}") == (
                "UNAVAILABLE",
                details,
            )
            assert (is_ready(running), is_ready(running, "1")) == (False, False)
            assert not running.stub.ServerReady(pb.ServerReadyRequest()).ready
            found = scrape(running)
            assert value(found, "model_ready") == 0
            assert value(found, "probe_passed") == 0
            reached = value(found, "accuracy_ratio", source="probe")
            assert reached is not None
            assert f"accuracy {reached:.4f} on its 50 holdout rows, at least 0.9900" in details
            assert (value(found, "probe_failures_total") or 0) >= 2  # it was looked at twice
            digits_stub = digits_grpc.DigitsStub(running.channel)
            (quality,) = digits_stub.GetQuality(digits_pb.GetQualityRequest()).models
            assert (quality.probe_passed, quality.probe_accuracy) == (False, reached)
            assert quality.holdout_accuracy == 1.0
            session.restore()
            model_is(HEALTH.SERVING)
            server_is(HEALTH.SERVING)
        assert labels(ask(running, digits.images[:3])) == labels(ask(running, digits.images[:3]))
        assert index(running) == {"1": ("READY", "")}
        found = scrape(running)
    assert value(found, "model_ready") == 1
    assert value(found, "probe_passed") == 1


def test_a_model_that_errs_only_as_it_is_batched_here_is_found_out_and_the_log_says_so(
    tmp_path: Path, digits: Digits
) -> None:
    publish_probed(tmp_path, digits, save_brittle)
    with server_process("--model-repository", str(tmp_path)) as process:
        process.wait_for("is not ready any more: it " + FAULT)
        process.popen.terminate()
        assert process.finish() == 0
    assert sum("is not ready any more" in line for line in process.log) == 1


def test_an_operator_repairs_a_suspended_version_by_loading_it_again(
    tmp_path: Path, digits: Digits
) -> None:
    directory = publish_probed(tmp_path, digits)
    with running_server(
        tmp_path,
        probe_interval=OFTEN,
        model_control_mode="explicit",
        load_model=("proven",),
        allow_admin=True,
    ) as running:
        session = corruptible(running, directory)
        with watch(running, "proven") as model_is:
            session.corrupt()
            model_is(HEALTH.NOT_SERVING)
            running.stub.RepositoryModelLoad(
                pb.RepositoryModelLoadRequest(model_name="proven"), timeout=PATIENCE
            )
            assert index(running) == {"1": ("READY", "")}
            assert len(labels(ask(running, digits.images[:3]))) == 3
            session = corruptible(running, directory)
            session.corrupt()
            model_is(HEALTH.NOT_SERVING)
        running.stub.RepositoryModelUnload(
            pb.RepositoryModelUnloadRequest(model_name="proven"), timeout=PATIENCE
        )
        assert index(running) == {"1": ("UNAVAILABLE", "was unloaded")}
        found = scrape(running)
    assert value(found, "model_ready") == 0
    for name in ("holdout", "probe"):
        assert value(found, "accuracy_ratio", source=name) is None
    assert value(found, "probe_passed") is None


def test_while_the_newest_version_is_suspended_an_older_one_is_served(
    tmp_path: Path, digits: Digits
) -> None:
    versions = [publish_probed(tmp_path, digits) for _ in range(2)]
    with running_server(tmp_path, probe_interval=OFTEN, version_policy="all") as running:
        session = corruptible(running, versions[1])
        assert ask(running, digits.images[:1]).model_version == "2"
        session.corrupt()
        until(lambda: not is_ready(running, "2"))
        assert ask(running, digits.images[:1]).model_version == "1"
        assert is_ready(running)
        assert running.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert refusal(lambda: ask(running, digits.images[:1], "2"))[0] == CODE.UNAVAILABLE


def test_a_poll_takes_an_older_version_in_place_of_a_suspended_one_which_stays_loaded(
    tmp_path: Path, digits: Digits
) -> None:
    versions = [publish_probed(tmp_path, digits) for _ in range(2)]
    with running_server(tmp_path, probe_interval=OFTEN, poll_interval=3600.0) as running:
        registry, control = running.server.inference.registry, running.server.inference.control
        session = corruptible(running, versions[1])
        with watch(running, "proven") as model_is:
            model_is(HEALTH.SERVING)
            session.corrupt()
            model_is(HEALTH.NOT_SERVING)
            suspended = registry.find("proven", 2)
            for _ in range(2):
                control.poll()
                assert registry.loaded_versions("proven") == [1, 2]
                assert registry.find("proven", 2) is suspended
                assert ask(running, digits.images[:1]).model_version == "1"
            session.restore()
            until(lambda: is_ready(running, "2"))
            control.poll()
        assert registry.loaded_versions("proven") == [2]
        assert ask(running, digits.images[:1]).model_version == "2"


def test_under_full_load_probes_neither_fail_nor_show_in_what_callers_count_and_get(
    tmp_path: Path, digits: Digits
) -> None:
    publish_probed(tmp_path, digits)
    requests, rows, faults = [0, 0, 0], [0, 0, 0], list[str]()
    with running_server(tmp_path, probe_interval=OFTEN, max_batch_size=16) as running:
        expected = labels(ask(running, digits.images[:16]))
        over = threading.Event()

        def load(number: int) -> None:
            random = np.random.default_rng(number)
            while not over.is_set():
                first, count = int(random.integers(0, 12)), int(random.integers(1, 5))
                got = labels(ask(running, digits.images[first : first + count]))
                if got != expected[first : first + count]:
                    faults.append(f"{first}, {count}: {got}")
                requests[number] += 1
                rows[number] += count

        clients = [threading.Thread(target=load, args=(number,)) for number in range(3)]
        for client in clients:
            client.start()
        registry = running.server.inference.registry
        served = registry.get("proven")
        # What the prober does, again and again while callers keep the model busy.
        prober = Prober(registry, 0)
        for _ in range(5):
            prober.probe(served)
        over.set()
        for client in clients:
            client.join()
        found = scrape(running)
    assert faults == []
    assert value(found, "requests_total", code="OK") == sum(requests) + 1
    assert value(found, "inferences_total") == sum(rows) + 16
    assert value(found, "batch_rows_sum") == sum(rows) + 16
    assert value(found, "request_seconds_count") == sum(requests) + 1
    assert value(found, "request_rows_sum") == sum(rows) + 16
    predicted = [value(found, "predictions_total", label=label) or 0 for label in ("3", "7")]
    assert sum(predicted) == sum(rows) + 16
    assert value(found, "probe_failures_total") == 0
    assert value(found, "probe_passed") == 1


# The prober itself


def always(rows: int) -> bool:
    return True


def never(rows: int) -> bool:
    return False


@dataclasses.dataclass
class Switch:
    """Runs the model, which can be broken, slow, or `wrong` from how many rows it has run so far;
    each run, once held, waits for `go`."""

    run_model: Run
    wrong: Callable[[int], bool] = lambda rows: False
    broken: bool = False
    seconds: float = 0.0
    rows: list[int] = dataclasses.field(default_factory=list)
    entered: threading.Event = dataclasses.field(default_factory=threading.Event)
    go: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, inputs: Tensors) -> Tensors:
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")
        outputs = self.run_model(inputs)
        time.sleep(self.seconds)
        if self.wrong(sum(self.rows)):
            outputs["labels"] = 1 - outputs["labels"]
        self.rows.append(len(inputs["images"]))
        return outputs


@dataclasses.dataclass
class Bench:
    """One version that is loaded, and switches to break it."""

    registry: ModelRegistry
    served: ServedModel
    switch: Switch
    counters: Path

    def value(self, family: str, *more: str) -> float | None:
        series = getattr(Exported, family).series("proven", "1", *more)
        slots = read(self.counters).sums.get(series)
        return slots[0] if slots else None


@pytest.fixture
def bench(tmp_path: Path, digits: Digits) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(change: Callable[[Model], Model] = lambda model: model, **options: object) -> Bench:
        directory = publish_probed(tmp_path / "models", digits)
        loaded = model.load(directory, read_manifest(directory), Runtime("cpu", "fp32", 1))
        switch = Switch(loaded.run)
        switch.go.set()
        (tmp_path / "counters").mkdir()
        metrics = Metrics(tmp_path / "counters", "test").model("proven", 1)
        config = dataclasses.replace(ServerConfig(), **options)  # type: ignore[arg-type]
        served = ServedModel(change(dataclasses.replace(loaded, run=switch.run)), config, metrics)
        registry = ModelRegistry()
        metrics.promised(served.promised_accuracy)
        metrics.loaded(0.1)
        registry.add(served)
        made.append(Bench(registry, served, switch, tmp_path / "counters"))
        return made[-1]

    yield make
    for each in made:
        each.switch.go.set()
        assert each.served.batcher.close(PATIENCE)


def test_a_failing_version_is_suspended_and_says_why_and_resumed_when_it_passes(
    bench: Callable[..., Bench],
) -> None:
    its = bench()
    prober = Prober(its.registry, 0)
    its.switch.wrong = always
    prober.probe(its.served)
    fault = (
        "does not reproduce its manifest: accuracy 0.0000 on its 50 holdout rows,"
        " at least 0.9900 is required"
    )
    assert [(s.state, s.reason) for s in its.registry.index] == [(State.UNAVAILABLE, fault)]
    with pytest.raises(ModelNotReady, match="version 1 is not served: does not reproduce"):
        its.registry.get("proven")
    assert (its.registry.served, its.registry.loaded) == ([], [its.served])
    assert (its.value("model_ready"), its.value("probe_passed")) == (0, 0)
    assert its.value("accuracy", "probe") == 0.0
    assert its.value("accuracy", "holdout") == 1.0
    assert its.value("probe_failures") == 2
    its.switch.wrong = never
    prober.probe(its.served)
    assert its.registry.get("proven") is its.served
    assert [(s.state, s.reason) for s in its.registry.index] == [(State.READY, "")]
    assert (its.value("model_ready"), its.value("probe_passed")) == (1, 1)


def test_a_model_that_fails_on_its_holdout_is_suspended_and_has_no_accuracy(
    bench: Callable[..., Bench],
) -> None:
    its = bench()
    its.switch.broken = True
    Prober(its.registry, 0).probe(its.served)
    assert its.registry.index[0].reason == "fails on its own holdout; the log says how"
    assert (its.value("probe_passed"), its.value("accuracy", "probe")) == (0, None)


def test_one_slip_is_no_outage(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    its = bench()
    its.switch.wrong = lambda rows: rows < 50
    with caplog.at_level(logging.WARNING):
        Prober(its.registry, 0).probe(its.served)
    assert "passed only when probed again: it does not reproduce" in caplog.text
    assert its.registry.get("proven") is its.served
    assert (its.value("probe_failures"), its.value("probe_passed")) == (1, 1)


def test_one_lucky_replay_is_no_recovery(bench: Callable[..., Bench]) -> None:
    its = bench()
    its.switch.wrong = lambda rows: rows < 100 or rows >= 150
    for replays in (2, 4):
        Prober(its.registry, 0).probe(its.served)
        assert sum(its.switch.rows) == 50 * replays
        assert its.registry.served == []
    assert (its.value("probe_failures"), its.value("probe_passed")) == (3, 0)


def test_probes_ask_for_few_rows_at_a_time_and_for_one_where_runs_are_slow(
    bench: Callable[..., Bench],
) -> None:
    its = bench()
    Prober(its.registry, 0).probe(its.served)
    assert sum(its.switch.rows) == 50
    assert its.switch.rows[0] == 1
    assert max(its.switch.rows) <= 8
    its.switch.rows.clear()
    its.switch.seconds = 0.006
    Prober(its.registry, 0).probe(its.served)
    assert its.switch.rows == [1] * 50


def test_a_model_whose_rows_cannot_be_shared_is_asked_row_by_row_in_its_own_shape(
    bench: Callable[..., Bench],
) -> None:
    its = bench(lambda model: dataclasses.replace(model, batchable=False))
    Prober(its.registry, 0).probe(its.served)
    assert its.switch.rows == [1] * 50
    assert its.value("probe_passed") == 1


def test_a_version_without_a_holdout_is_not_probed(bench: Callable[..., Bench]) -> None:
    its = bench(lambda model: dataclasses.replace(model, standard=None))
    its.switch.broken = True
    Prober(its.registry, 0).probe(its.served)
    assert its.switch.rows == []
    assert its.registry.get("proven") is its.served
    assert its.value("probe_passed") is None


def fill(its: Bench, count: int) -> list[Outcome]:
    """So many callers' requests, of which one is running and held."""
    outcomes: list[Outcome] = []
    its.switch.go.clear()
    its.switch.entered.clear()
    image: Tensors = {"images": np.zeros((1, 28, 28), np.uint8)}
    for number in range(count):
        request = its.served.request(
            image, outcomes.append, deadline=np.inf, priority=0, arrived=time.monotonic()
        )
        its.served.submit(request)
        if number == 0:
            assert its.switch.entered.wait(PATIENCE)
    return outcomes


@pytest.mark.parametrize(
    ("queued", "error"), [(2, QueueFull), (1, DeadlineExceeded)], ids=["full", "busy"]
)
def test_a_probe_that_callers_leave_no_room_for_is_no_failure(
    bench: Callable[..., Bench], queued: int, error: type[Exception]
) -> None:
    its = bench(max_queue_size=2, instance_count=1)
    outcomes = fill(its, 1 + queued)
    with pytest.raises(error):
        Prober(its.registry, 0, patience=0.01).probe(its.served)
    assert its.registry.get("proven") is its.served
    assert its.value("probe_passed") is None
    its.switch.go.set()
    assert its.served.batcher.close(PATIENCE)
    assert [type(outcome) for outcome in outcomes] == [Answer] * (1 + queued)
    assert sum(its.switch.rows) == 1 + queued  # what was withdrawn never ran


def test_a_later_probe_that_callers_leave_no_room_for_is_soon_made_up_for(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    its = bench(max_queue_size=2, instance_count=1)
    interval = 2.0
    prober = Prober(its.registry, interval, patience=0.01)

    def seconds_until_made_up_for() -> float:
        caplog.clear()
        outcomes = fill(its, 2)
        until(lambda: "is not done" in caplog.text)
        its.switch.rows.clear()
        late = time.monotonic()
        its.switch.go.set()
        until(lambda: sum(its.switch.rows) >= 2 + 50)
        assert [type(outcome) for outcome in outcomes] == [Answer] * 2
        return time.monotonic() - late

    with caplog.at_level(logging.WARNING):
        prober.start()
        until(lambda: its.value("probe_passed") == 1)
        assert once_within(0.8 * interval, seconds_until_made_up_for)  # not when the next is due
    prober.stop()


def test_a_version_that_is_unloaded_meanwhile_has_not_failed(bench: Callable[..., Bench]) -> None:
    its = bench()
    its.registry.remove("proven", 1)
    assert its.served.batcher.close(PATIENCE)
    with pytest.raises(BatcherClosed):
        Prober(its.registry, 0).probe(its.served)
    assert not its.registry.judge(its.served, 0.5, "came too late")
    assert its.registry.index[0].reason == ""
    assert its.value("probe_failures") == 0


def test_the_prober_stops_though_what_it_asked_is_still_running(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    its = bench()
    its.switch.go.clear()
    prober = Prober(its.registry, OFTEN)
    with caplog.at_level(logging.WARNING):
        prober.start()
        assert its.switch.entered.wait(PATIENCE)
        prober.stop()
    assert caplog.text == ""
    assert its.registry.get("proven") is its.served


def test_what_is_loaded_later_is_probed_when_the_prober_is_woken(
    bench: Callable[..., Bench],
) -> None:
    its = bench()
    its.registry.remove("proven", 1)
    prober = Prober(its.registry, 0)
    prober.start()
    its.registry.add(its.served)
    prober.wake()
    assert its.switch.entered.wait(PATIENCE)
    prober.stop()


def test_a_suspended_version_is_replaced_by_another_of_its_number_that_is_served(
    bench: Callable[..., Bench],
) -> None:
    its = bench()
    its.switch.wrong = always
    Prober(its.registry, 0).probe(its.served)
    its.registry.note("proven", 1, State.UNAVAILABLE, "sha256 is another")
    assert its.registry.index[0].state is State.UNAVAILABLE
    assert its.registry.index[0].reason.endswith("is required; sha256 is another")
    again = ServedModel(its.served.model, ServerConfig(), its.served.metrics)
    assert its.registry.add(again) is its.served
    assert its.registry.get("proven") is again
    assert not its.registry.judge(its.served, 0.0, "it was replaced")
    assert again.batcher.close(PATIENCE)


# What is kept of a holdout


def fp32(accuracy: float | None, holdout_accuracy: float | None) -> Variant:
    return Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy, holdout_accuracy)


def test_a_small_holdout_is_kept_whole() -> None:
    whole = Holdout({"x": np.zeros((200, 4))}, np.zeros(200, np.int64))
    standard = holdout.kept(whole, fp32(0.8, 0.9), 0.01)
    assert standard is not None
    assert standard.holdout is whole
    assert standard.least == pytest.approx(0.89)
    assert holdout.kept(whole, fp32(None, None), 0.01) is None


def test_of_a_large_holdout_rows_spread_over_it_are_kept_and_chance_is_allowed_for() -> None:
    rows = np.arange(5000)
    whole = Holdout({"x": rows[:, np.newaxis]}, rows)
    standard = holdout.kept(whole, fp32(0.8, 0.9), 0.01)
    assert standard is not None
    kept = standard.holdout.labels
    assert (len(kept), kept[0], kept[-1], len(set(kept))) == (1000, 0, 4999, 1000)
    assert standard.holdout.inputs["x"][:, 0].tolist() == kept.tolist()
    assert standard.least == pytest.approx(0.9 - 0.01 - 3 * (0.9 * 0.1 / 1000) ** 0.5)


def test_of_a_holdout_of_large_rows_as_many_are_kept_as_fit() -> None:
    images = np.broadcast_to(np.zeros((), np.float32), (100, 1024, 1024))
    standard = holdout.kept(Holdout({"x": images}, np.zeros(100, np.int64)), fp32(0.9, 0.9), 0.01)
    assert standard is not None
    assert len(standard.holdout.labels) == 16  # of 4 MiB each


def test_versions_without_a_holdout_show_no_accuracy(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with running_server(tmp_path, probe_interval=OFTEN) as running:
        running.stub.ModelInfer(times_request(1.0), timeout=PATIENCE)
        names = {name for name, _ in scrape(running)}
    assert not {"inference_accuracy_ratio", "inference_probe_passed"} & names
