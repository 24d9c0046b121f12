"""What /metrics and ModelStatistics say of what several processes counted."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from test_counters import python

from serving.counter_directory import fold, read
from serving.counters import Counters, Merge
from serving.errors import LoadFailure, Rejection
from serving.execution import Execution
from serving.exposition import Collector
from serving.families import FAMILIES, MODEL, ROWS, SECONDS, Exported, histogram
from serving.metrics import Metrics, SupervisorMetrics
from serving.processes import Process, current_process, usage
from serving.statistics import BatchTotals, Duration, ModelTotals

WORKER = """
import sys
from pathlib import Path
from serving.metrics import Metrics
model = Metrics(Path(sys.argv[1]), "test", int(sys.argv[2])).model("digits", 1)
print("began", flush=True)
for line in sys.stdin:
    exec(line)
    print("did", flush=True)
"""
LABELS = {"model": "digits", "version": "1"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def registry_of(*directories: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    for directory in directories:
        registry.register(Collector(directory))
    return registry


def samples(registry: CollectorRegistry) -> Samples:
    """Every sample of the text that Prometheus would read, by name and labels."""
    text = generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def execution(*queue_seconds: float, rows: int = 1) -> Execution:
    """A batch of requests that took a second longer than they waited."""
    ones = [1] * len(queue_seconds)
    return Execution(rows, ones, queue_seconds, [q + 1 for q in queue_seconds], 0.25, 0.5, 0.125)


seconds = st.floats(0, 20) | st.sampled_from(SECONDS)
executions = st.builds(
    lambda rows, times, stages: Execution(
        rows,
        [rows // (len(times) or 1)] * len(times),
        [queue for queue, _ in times],
        [request for _, request in times],
        *stages,
    ),
    st.integers(1, 300),
    st.lists(st.tuples(seconds, seconds), max_size=4),
    st.tuples(seconds, seconds, seconds),
)

failures = st.sampled_from([("INTERNAL", Rejection.FAILED), ("CANCELLED", Rejection.CANCELLED)])


class Reference:
    """The same metrics in prometheus_client's own classes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new = {"labelnames": MODEL, "registry": self.registry}
        self.requests = Counter("inference_requests", "", (*MODEL, "code"), registry=self.registry)
        self.inferences = Counter("inference_inferences", "", MODEL, registry=self.registry)
        self.executions = Counter("inference_executions", "", MODEL, registry=self.registry)
        labels = (*MODEL, "reason")
        self.rejected = Counter("inference_rejected", "", labels, registry=self.registry)
        self.request_bytes = Counter("inference_request_bytes", "", MODEL, registry=self.registry)
        self.histograms = {
            name: Histogram(f"inference_{name}", "", buckets=bounds, **new)  # type: ignore[arg-type]
            for name, bounds in {
                "request_seconds": SECONDS,
                "queue_seconds": SECONDS,
                "compute_input_seconds": SECONDS,
                "compute_infer_seconds": SECONDS,
                "compute_output_seconds": SECONDS,
                "batch_rows": ROWS,
                "request_rows": ROWS,
            }.items()
        }

    def executed(self, execution: Execution) -> None:
        for name, values in {
            "request_seconds": execution.request_seconds,
            "queue_seconds": execution.queue_seconds,
            "compute_input_seconds": [execution.compute_input_seconds],
            "compute_infer_seconds": [execution.compute_infer_seconds],
            "compute_output_seconds": [execution.compute_output_seconds],
            "batch_rows": [execution.rows],
            "request_rows": execution.request_rows,
        }.items():
            child = self.histograms[name].labels(**LABELS)
            for each in values:
                child.observe(each)
        self.requests.labels(**LABELS, code="OK").inc(len(execution.queue_seconds))
        self.inferences.labels(**LABELS).inc(execution.rows)
        self.executions.labels(**LABELS).inc()

    def failed(self, code: str, reason: Rejection, message_bytes: int) -> None:
        self.requests.labels(**LABELS, code=code).inc()
        self.rejected.labels(**LABELS, reason=reason).inc()
        self.request_bytes.labels(**LABELS).inc(message_bytes)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2), executions), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 2), failures, st.integers(0, 999)), max_size=6),
    st.booleans(),
)
def test_the_sum_over_files_is_what_one_prometheus_client_would_show(
    ran: list[tuple[int, Execution]],
    failed: list[tuple[int, tuple[str, Rejection], int]],
    folded: bool,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        reference = Reference()
        models = [Metrics(path, "test", worker).model("digits", 1) for worker in range(3)]
        for worker, each in ran:
            models[worker].executed(each)
            reference.executed(each)
        for worker, (code, reason), size in failed:
            models[worker].failed(code, reason, 0.5, size)
            reference.failed(code, reason, size)
        if folded:
            fold(path)
        found = samples(registry_of(path))
        expected = {k: v for k, v in samples(reference.registry).items() if "_created" not in k[0]}
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_statistics_count_stages_once_per_request_and_batches_by_their_size(
    tmp_path: Path,
) -> None:
    before = time.time_ns() // 1_000_000
    one, two = (Metrics(tmp_path, "test", worker) for worker in (0, 1))
    one.model("digits", 1).executed(execution(1, 2, 3, rows=5))
    two.model("digits", 1).executed(execution(4, rows=1))
    two.model("digits", 1).executed(execution(5, 6, rows=5))
    two.model("digits", 1).failed("INVALID_ARGUMENT", Rejection.INVALID_INPUT, 7, 0)
    one.model("digits", 1).failed("RESOURCE_EXHAUSTED", Rejection.QUEUE_FULL, 8, 0)
    one.model("digits", 2)
    totals = one.totals()
    last = totals["digits", "1"].last_inference
    assert before <= last <= time.time_ns() // 1_000_000
    assert totals["digits", "1"] == two.totals()["digits", "1"]
    assert totals["digits", "1"] == ModelTotals(
        success=Duration(6, 27),
        fail=Duration(2, 15),
        queue=Duration(6, 21),
        compute_input=Duration(6, 1.5),
        compute_infer=Duration(6, 3),
        compute_output=Duration(6, 0.75),
        inference_count=11,
        execution_count=3,
        last_inference=last,
        batches={1: BatchTotals(1, 1, 0.25, 0.5, 0.125), 5: BatchTotals(5, 2, 0.5, 1, 0.25)},
    )
    assert totals["digits", "2"] == ModelTotals()


@pytest.fixture
def began(tmp_path: Path) -> Iterator[list[Worker]]:
    """Two worker processes that share a directory."""
    with Worker(tmp_path, 0) as one, Worker(tmp_path, 1) as two:
        yield [one, two]


class Worker:
    """A process that counts; `model` in its commands are its metrics of version 1 of digits."""

    def __init__(self, directory: Path, number: int) -> None:
        self.popen = python(WORKER, str(directory), str(number))
        self._expect("began")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.communicate()

    def do(self, command: str) -> None:
        """Run a line of Python there, and wait until it has run."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(command + "\n")
        self.popen.stdin.flush()
        self._expect("did")

    def _expect(self, line: str) -> None:
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == f"{line}\n"


def test_a_version_is_ready_when_every_worker_serves_it(
    tmp_path: Path, began: list[Worker]
) -> None:
    registry = registry_of(tmp_path)

    def ready() -> float | None:
        return value(samples(registry), "inference_model_ready", **LABELS)

    one, two = began
    supervisor = SupervisorMetrics(tmp_path)
    assert ready() == 0
    one.do("model.loaded(2.0)")
    assert ready() == 0
    two.do("model.loaded(3.0)")
    assert ready() == 1
    assert value(samples(registry), "inference_model_load_seconds", **LABELS) == 3
    two.popen.kill()
    two.popen.wait()
    assert ready() == 1
    supervisor.restarted()
    with Worker(tmp_path, 1) as again:
        assert ready() == 0
        again.do("model.loaded(1.0)")
        assert ready() == 1
        found = samples(registry)
        assert value(found, "inference_workers") == 2
        assert value(found, "inference_worker_restarts_total") == 1
        assert value(found, "inference_model_load_seconds", **LABELS) == 2
        one.do("model.unloaded()")
        assert ready() == 0


def test_pending_requests_are_those_of_all_that_live(tmp_path: Path, began: list[Worker]) -> None:
    registry = registry_of(tmp_path)
    for number, worker in enumerate(began, start=3):
        worker.do(f"model.pending({number})")
    assert value(samples(registry), "inference_pending_requests", **LABELS) == 7
    began[0].popen.kill()
    began[0].popen.wait()
    assert value(samples(registry), "inference_pending_requests", **LABELS) == 4


def test_a_version_that_was_loaded_anew_as_something_else_is_shown_as_that(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "test")
    for precision in ("fp32", "int8", "fp32"):
        metrics.model("digits", 1).runs_on(precision, "cpu", "CPUExecutionProvider")
        found = samples(registry_of(tmp_path))
        infos = {
            dict(labels)["precision"]: v for (n, labels), v in found.items() if "model_info" in n
        }
        assert {each for each, shown in infos.items() if shown} == {precision}


def test_a_refused_version_says_why_and_is_not_ready(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "test")
    metrics.load_failed("digits", 1, LoadFailure.CHECKSUM)
    metrics.refused("NOT_FOUND", Rejection.MODEL_NOT_FOUND, 17)
    found = samples(registry_of(tmp_path))
    failures = "inference_model_load_failures_total"
    assert value(found, failures, **LABELS, reason="checksum") == 1
    assert value(found, "inference_model_ready", **LABELS) == 0
    nobody = {"model": "", "version": "", "code": "NOT_FOUND"}
    assert value(found, "inference_requests_total", **nobody) == 1
    nobody = {"model": "", "version": ""}
    assert value(found, "inference_request_bytes_total", **nobody) == 17
    rejected = "inference_rejected_total"
    assert value(found, rejected, **nobody, reason="model_not_found") == 1
    assert value(found, rejected, **nobody, reason="overloaded") == 0
    assert value(found, "inference_server_info", version="test") == 1


def test_the_use_of_the_processes_is_added_up_and_that_of_the_dead_is_kept(
    tmp_path: Path, began: list[Worker]
) -> None:
    SupervisorMetrics(tmp_path)
    registry = registry_of(tmp_path)
    began[0].do("while __import__('time').process_time() < 0.3: pass")
    alive = samples(registry)
    (used,) = (usage(p) for p in read(tmp_path).workers if p.pid == began[0].popen.pid)
    own = sum(os.times()[:2])
    began[0].popen.kill()
    began[0].popen.wait()
    fold(tmp_path)
    after = samples(registry)
    # A collector that never saw the worker alive knows of its seconds too: they are its parent's.
    cpu = value(samples(registry_of(tmp_path)), "process_cpu_seconds_total")
    assert used is not None
    assert cpu is not None
    assert used.cpu_seconds >= 0.1
    assert cpu >= own + used.cpu_seconds - 0.02  # two clock ticks
    for name in ("virtual_memory_bytes", "resident_memory_bytes", "open_fds", "max_fds"):
        three, two = (value(found, f"process_{name}") for found in (alive, after))
        assert three is not None
        assert two is not None
        assert 0 < two < three
    started = value(after, "process_start_time_seconds")
    assert started is not None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    age = uptime - current_process().start / os.sysconf("SC_CLK_TCK")
    assert time.time() - started == pytest.approx(age, abs=2)


def test_what_was_shown_is_never_taken_back(tmp_path: Path) -> None:
    """The order in which floats are added decides the last bit, and folding changes the order."""
    me = current_process()
    series = Exported.queue_seconds.series("digits", "1")
    former = Process(me.pid, me.start - 1)
    for process, amount in ((former, 0.3), (me, 0.1), (former, 0.2)):
        slots = Counters(tmp_path, process=process).record(series, len(SECONDS) + 2).slots
        slots[-1] = amount
        if amount == 0.3:
            fold(tmp_path)
    registry = registry_of(tmp_path)

    def total(registry: CollectorRegistry) -> float | None:
        return value(samples(registry), "inference_queue_seconds_sum", **LABELS)

    shown = total(registry)
    fold(tmp_path)
    assert total(registry_of(tmp_path)) == 0.6
    assert total(registry) == shown == math.nextafter(0.6, 1)


def test_every_metric_has_a_text_and_a_name_of_its_own(tmp_path: Path) -> None:
    text = generate_latest(registry_of(tmp_path)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for family in FAMILIES:
        shown = families[family.name.removesuffix("_total")]
        assert (shown.documentation, shown.type) == (family.help, family.kind)
        assert family.name.endswith("_total") == (family.kind == "counter")
    assert {"inference_workers", "process_cpu_seconds", "python_info"} <= families.keys()


def test_the_openmetrics_text_that_prometheus_asks_for_says_the_same(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "test")
    metrics.model("digits", 1).executed(execution(1, 2, rows=3))
    metrics.load_failed("other", 1, LoadFailure.OTHER)
    registry = registry_of(tmp_path)
    text = openmetrics_text(registry).decode()  # type: ignore[no-untyped-call]
    families = openmetrics_families(text)  # type: ignore[no-untyped-call]
    found = {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}
    plain = samples(registry)
    assert found.keys() == plain.keys()
    ours = {key for key in found if key[0].startswith("inference_")}
    assert {key: found[key] for key in ours} == {key: plain[key] for key in ours}


def test_durations_have_buckets_from_50_microseconds_to_10_seconds() -> None:
    bounds = {
        each.name: (each.bounds[0], each.bounds[-1])
        for each in FAMILIES
        if each.kind == "histogram" and each.name.endswith("_seconds")
    }
    stages = ("request", "queue", "compute_input", "compute_infer", "compute_output")
    assert bounds == {
        **{f"inference_{stage}_seconds": (50e-6, 10.0) for stage in stages},
        "inference_feedback_delay_seconds": (1.0, 30 * 86400.0),
    }


def test_a_directory_is_not_registered_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry_of(tmp_path, tmp_path)


def test_a_histogram_of_ones_own_needs_its_declaration_only(tmp_path: Path) -> None:
    family = histogram("inference_other_bytes", "Bytes.", ("model",), (1.0, 10.0))
    metrics = Metrics(tmp_path, "test")
    for size in (1, 5, 50):
        metrics.observe(family, size, "digits")
    assert list(metrics.slots(family, "digits")) == [1, 1, 1, 56]
    assert family.merge is Merge.SUM
    with pytest.raises(ValueError, match=r"inference_other_bytes has the labels \('model',\)"):
        metrics.observe(family, 1, "digits", "1")
