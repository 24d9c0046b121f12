"""What the side-by-side benchmark computes: bytes on the wire, reports read, ceiling, verdicts."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, Digits, Running

from benchmarks.serving import (
    connections,
    contestants,
    h2load,
    http2,
    open_loop,
    passed_on,
    process,
    session,
    table,
    targets,
    wire,
)
from benchmarks.serving.__main__ import Results
from benchmarks.serving.checker import Checker, wait_until
from benchmarks.serving.measure import Refused, Tuned, agree, choose
from benchmarks.serving.models import Model
from benchmarks.serving.overload import ceiling
from benchmarks.serving.peers import BUILT_IN, Tuning
from serving.lane import build
from serving.pb import inference_pb2 as pb

HALVES = np.array([[0.5, 0.5]], np.float32)
REPORT = """\
finished in 2.00s, 3147.00 req/s, 432.56KB/s
requests: 6294 total, 6358 started, 6294 done, 6293 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 6294 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 865.11KB (885874) total, 18.73KB (19182) headers (space savings 96.24%), 510.16KB (522402) data
"""  # noqa: E501


def test_a_message_is_framed_with_a_flag_and_its_length() -> None:
    assert wire.frame(b"abc") == b"\0\0\0\0\3abc"


def test_a_v2_request_has_the_pixels_as_raw_contents(digits: Digits) -> None:
    request = pb.ModelInferRequest.FromString(wire.encode_v2("m", digits.images[:2]))
    assert (request.model_name, list(request.inputs[0].shape)) == ("m", [2, 28, 28])
    assert request.raw_input_contents[0] == digits.images[:2].tobytes()


def test_a_v2_answer_is_read_raw_and_typed() -> None:
    expected = np.array([[0.25, 0.75]], np.float32)
    typed = pb.ModelInferResponse()
    typed.outputs.add(name="probabilities").contents.fp32_contents.extend([0.25, 0.75])
    for answer in (wire.answer_v2("m", expected), typed.SerializeToString()):
        np.testing.assert_array_equal(wire.decode_v2(answer, 1), expected)


def test_an_answer_without_probabilities_is_wrong() -> None:
    with pytest.raises(wire.WrongAnswer, match="probabilities"):
        wire.decode_v2(b"", 1)


def test_torchserves_messages_are_protobuf(digits: Digits) -> None:
    image = digits.images[:1]
    entry = b"\x0a\x06images" + b"\x12\x90\x06" + image.tobytes()  # 784 pixels: 0x90 0x06
    request = b"\x0a\x01m" + b"\x1a\x9b\x06" + entry
    assert wire.encode_torchserve("m", image) == request
    floats = np.arange(80, dtype=np.float32).reshape(40, 2)
    answer = b"\x0a\xc0\x02" + floats.tobytes()  # 320 bytes
    np.testing.assert_array_equal(wire.decode_torchserve(answer, 40), floats)


def test_h2loads_report_and_log_are_read() -> None:
    assert h2load.parse_report(REPORT) == h2load.Report(6294, 6293, 2.0, 522402)
    latencies = h2load.parse_log("1795277925898135\t200\t3959\n1795277925898136\t200\t4301\n")
    np.testing.assert_allclose(latencies, [0.003959, 0.004301])


def test_a_report_that_lacks_a_line_is_named() -> None:
    with pytest.raises(h2load.LoadFailed, match="finished in"):
        h2load.parse_report("")


def test_arrivals_have_the_rate_asked_for() -> None:
    due = open_loop.arrivals(1000, 10)
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert np.all(np.diff(due) >= 0)
    # Of a Poisson process, a share of 1/e of the gaps is longer than the mean.
    assert np.mean(np.diff(due) > 1e-3) == pytest.approx(math.exp(-1), abs=0.02)


no_compiler = pytest.mark.skipif(
    bool(list(build.lacking())), reason="what compiles the generator is not installed"
)


@no_compiler
@pytest.mark.parametrize(("model", "status"), [("classifier", "OK"), ("nobody", "NOT_FOUND")])
def test_open_loop_tells_answers_from_refusals(
    model: str, status: str, running: Running, digits: Digits, tmp_path: Path
) -> None:
    image = digits.images[:1]
    target = h2load.Target(running.server.grpc_port, wire.V2.infer, min(os.sched_getaffinity(0)), 0)
    found, answers = open_loop.offer(
        target, wire.encode_v2(model, image), rate=400, seconds=0.5, scratch=tmp_path
    )
    assert list(found.statuses) == [status]
    assert found.statuses[status] == pytest.approx(200, rel=0.5)
    assert bool(found.latency_ms) == bool(answers) == (status == "OK")
    if answers:
        request = pb.ModelInferRequest.FromString(wire.encode_v2(model, image))
        expected = running.stub.ModelInfer(request).raw_output_contents[0]
        assert len(answers) == pytest.approx(6, abs=3)  # 1 in 100, the warm-up's too
        for each in answers:
            np.testing.assert_allclose(
                wire.decode_v2(each, 1)[0], np.frombuffer(expected, np.float32), atol=1e-6
            )


@no_compiler
def test_open_loop_says_why_it_could_not_ask(tmp_path: Path) -> None:
    (port,) = process.free_ports(1)
    target = h2load.Target(port, wire.V2.infer, min(os.sched_getaffinity(0)), 0)
    with pytest.raises(h2load.LoadFailed, match="connect"):
        open_loop.offer(target, b"", rate=10, seconds=0.1, scratch=tmp_path)


def test_answers_that_are_not_onnx_runtimes_are_found() -> None:
    model = Model("m", "fp32", Path(), Path(), np.zeros((1, 28, 28), np.uint8), HALVES)
    checker = Checker(1, wire.V2, model, fixed=True)
    checker.check_answers([wire.answer_v2("m", HALVES)])
    with pytest.raises(wire.WrongAnswer):
        checker.check_answers([wire.answer_v2("m", HALVES + np.float32(0.01))])
    checker.close()


def test_open_loop_counts_after_the_warm_up_only() -> None:
    due = np.array([0.5, 1.0, 1.5, 1.9])
    ended = np.array([0.6, 1.1, 1.7, 2.5])  # the last after the end
    found = open_loop.summarise(due, np.zeros(4), ended, np.array([0, 0, 8, 0]), 1.0)
    assert (found.offered_per_second, found.answered_per_second) == (3.0, 1.0)
    assert found.statuses == {"OK": 2, "RESOURCE_EXHAUSTED": 1}
    unsent = open_loop.summarise(due, np.array([0, 0, 0, np.nan]), ended, np.array([0] * 4), 1.0)
    assert unsent.offered_per_second == 2.0
    assert found.latency_ms["p50"] == pytest.approx((100 + 600) / 2)


def test_the_ceiling_is_what_refusals_leave() -> None:
    # 1,000/s at 1 ms each; 3,000 offered, refused at 0.1 ms: a ms + (3000 - a) / 10 ms = 1 s.
    assert ceiling(1000, 1e-4, 3000) == pytest.approx(700 / 0.9)
    assert ceiling(1000, 0, 3000) == 1000
    assert ceiling(1000, 5e-4, 3000) == 0
    assert ceiling(250_000, 4e-6, 750_000) == 0  # to refuse takes as long as to answer
    assert ceiling(1000, 1e-4, 800) == 800


def test_the_servers_own_counters_must_agree() -> None:
    text = 'inference_requests_total{code="OK",model="m",version="1"} 7.0\n'
    text += 'inference_requests_total{code="OK",model="m",version="2"} 3.0\n'
    text += 'inference_requests_total{code="OK",model="other",version="1"} 1.0\n'
    counted = session.parse_counters(text, "m")
    assert counted == {"OK": 10}
    agree({"OK": 4}, counted, 6)
    with pytest.raises(Refused):
        agree({"OK": 4}, counted, 7)
    with pytest.raises(Refused):
        agree({}, {"OK": 6, "RESOURCE_EXHAUSTED": 1}, 6)
    with pytest.raises(Refused):
        agree({}, {}, 6)  # it counts nothing of the kind


def test_the_best_settings_are_chosen_for_each_purpose() -> None:
    slow, quick = Tuning(64, 0.005), Tuning(8, 0.0)
    assert choose({slow: (900.0, 8.0), quick: (500.0, 1.0)}) == Tuned(slow, quick)


def test_the_usage_of_a_process_includes_what_it_started() -> None:
    child = "x = bytearray(50_000_000); print(1, flush=True); input()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        used = process.usage(parent.pid)
        assert len(process.tree(parent.pid)) == 2
        parent.communicate(b"\n")
    assert 50e6 < used.rss_bytes <= used.peak_bytes < 200e6
    assert 0 < used.cpu_seconds < 10


@pytest.mark.parametrize("style", ["sync", "aio"])
def test_the_no_op_server_answers_with_its_file(style: str, tmp_path: Path, digits: Digits) -> None:
    expected = np.array([[0.25, 0.75]], np.float32)
    (tmp_path / "answer").write_bytes(wire.answer_v2("m", expected))
    (port,) = process.free_ports(1)
    command = [sys.executable, "-m", "benchmarks.serving.noop_server", "--style", style]
    command += ["--port", str(port), "--answer", str(tmp_path / "answer")]
    root = str(Path(__file__).parent.parent)
    model = Model("m", "fp32", Path(), Path(), digits.images[:1], expected)
    with process.running(command, {"PYTHONPATH": root}, tmp_path) as server:
        assert wait_until(lambda: session.listens(port), lambda: server.poll() is None, PATIENCE)
        checker = Checker(port, wire.V2, model, fixed=True)
        assert checker.ready()
        checker.check_all()
        checker.close()
    assert (checker.checked, server.returncode) == (2, 0)


@pytest.mark.lane
@pytest.mark.parametrize("left_out", [(), ("metrics",), ("metrics", "quality")])
def test_a_server_that_leaves_work_out_answers_as_the_whole_one_does(
    left_out: tuple[str, ...], repository: Path, tmp_path: Path, running: Running, digits: Digits
) -> None:
    image = digits.images[:1]
    request = pb.ModelInferRequest.FromString(wire.encode_v2("classifier", image))
    raw = running.stub.ModelInfer(request).raw_output_contents[0]
    expected = np.frombuffer(raw, np.float32).reshape(1, 2)
    model = Model("classifier", "fp32", Path(), Path(), image, expected)
    ours = contestants.Ours(repository)
    contestant = (
        contestants.ablated(ours, left_out) if left_out else contestants.digits(ours, "fp32")
    )
    launch = contestant.launch(model, BUILT_IN, tmp_path)
    assert bool(launch.metrics_port) == (not left_out)
    port = int(launch.command[launch.command.index("--metrics-port") + 1])
    with process.running(launch.command, launch.environment, tmp_path) as server:
        assert wait_until(
            lambda: session.listens(launch.port), lambda: server.poll() is None, PATIENCE
        )
        checker = Checker(launch.port, wire.V2, model, fixed=False)
        assert wait_until(checker.ready, lambda: server.poll() is None, PATIENCE)
        checker.check_all()
        answer = pb.ModelInferResponse.FromString(
            checker.ask(wire.V2.infer, request.SerializeToString())
        )
        checker.close()
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).read()
    counted = session.parse_counters(text.decode(), "classifier").get("OK", 0)
    assert counted == (0 if left_out else checker.checked + 1)
    assert ("prediction_ids" in answer.parameters) == ("quality" not in left_out)


def test_what_knowing_costs_is_what_is_gained_without_it() -> None:
    loads = {
        "digits": ([100.0, 200.0, 110.0], [900.0, 800.0, 850.0]),
        "digits without metrics": ([99.0, 180.0, 11.0], [1000.0, 1000.0, 1000.0]),
        "digits without metrics and quality": ([50.0, 100.0, 55.0], [1000.0, 1000.0, 1000.0]),
    }
    servers = {
        name: {"cpu_us": cpu, "requests_per_second": rate, "others_cpu": [0.01]}
        for name, (cpu, rate) in loads.items()
    }
    machine = MACHINE | {"commit": "c", "date": "d"}
    record = {"metrics": {"machine": machine, "models": {"linear": servers}}}
    shown = table.table(record)
    text = "linear, share of requests/s, or of CPU time if larger, that metrics, drift and ids take"
    assert f"| {text} | ≤ 0.1 | 0.50 | MISSED |" in shown
    assert "(serving-profile.md)" in shown
    row = "| linear | digits without metrics | 3 | 99.0 | 11.0 to 180.0 | 10.0% | 1,000 | 15.0% |"
    assert row in shown
    assert "| linear | digits without metrics and quality | 3 | 55.0 | 50.0 to 100.0 |" in shown
    assert not table.all_met(record)


def test_overload_is_judged_for_each_model_by_what_it_still_answers() -> None:
    load = {
        "offered_per_second": 3000.0,
        "answered_per_second": 950.0,
        "statuses": {"OK": 950, "RESOURCE_EXHAUSTED": 2050},
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "late_p99_ms": 0.01,
    }
    found = {"capacity": 1000.0, "ceiling": 980.0, "goodput": 950.0, "rss_mb": [1.0, 2.0, 3.0]}
    found |= {"first": load, "second": load}
    machine = MACHINE | {"commit": "c", "date": "d"}
    record = {
        "overload": {"machine": machine, "seconds": 1, "refusal_us": 3.0, "models": {"m": found}}
    }
    shown = table.table(record)
    assert "| m at 3x capacity, answers/s over those at capacity | ≥ 0.9 | 0.95 | met |" in shown
    assert "| m | 1,000 | 3,000, 3,000 | 980 | 950, 950 | 0.95 | 1.0, 1.0 | 2.0, 2.0 |" in shown


def test_less_than_what_was_to_be_offered_proves_nothing() -> None:
    load = {"offered_per_second": 2000.0}
    found = {"capacity": 1000.0, "goodput": 1000.0, "first": load, "second": load}
    (verdict,) = targets.overload_verdicts({"models": {"m": found}})
    assert not verdict.met
    assert table.said(verdict.value) == "not measured"


def test_a_contestant_that_failed_leaves_its_targets_missed() -> None:
    record = _record(ours=2500.0, triton=2000.0)
    record["results"][1] |= {"rounds": [], "failures": ["it did not start"]}
    missed = {verdict.text for verdict in targets.verdicts(record) if not verdict.met}
    assert "resnet18, requests/s over Triton's" in missed


def test_a_load_that_failed_has_no_tail() -> None:
    load = {"share": 0.7, "latency_ms": {"p50": 1.0, "p99": 1.0}, "statuses": {"OK": 1}}
    server = {"contestant": "digits", "model": "linear", "loads": [load], "failure": "wrong"}
    (verdict,) = targets.load_verdicts({"servers": [server]})
    assert not verdict.met


def test_a_connection_that_was_ended_does_not_count_as_idle() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"settings")
        connections.require_open(ours)
        theirs.close()
        with pytest.raises(http2.Broken):
            connections.require_open(ours)


def test_a_section_that_is_measured_again_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    first = Results(tmp_path)
    for section in ("passed_on", "load"):
        first.save(section, {"seconds": 1.0, "calls": {}, "servers": []})
    again = Results(tmp_path)
    again.save("load", {"seconds": 2.0, "servers": []})
    kept = Results(tmp_path).record
    assert (kept["passed_on"], kept["load"]["seconds"]) == (first.record["passed_on"], 2.0)
    assert {"date", "commit"} <= kept["load"]["machine"].keys()


def test_the_table_says_what_was_met_and_what_was_missed() -> None:
    record = {"compared": _record(ours=1000.0, triton=2000.0)}
    shown = table.table(record)
    assert "| resnet18, requests/s over Triton's | ≥ 1.2 | 0.50 | MISSED |" in shown
    assert "| ready with all models, s | ≤ 2 |" not in shown  # linear was not measured
    assert "| triton | 2,000 | 2.00 |" in shown
    assert not table.all_met(record)
    assert table.all_met({"compared": _record(ours=2500.0, triton=2000.0)})


MACHINE = {"processor": "p", "cores": 2, "memory_gib": 8, "python": "3", "versions": {}}


def test_what_passing_a_call_on_costs_is_its_cpu_time_over_grpcios() -> None:
    servers = {
        name: {"cpu_us": cpu, "calls_per_second": [1000.0]}
        for name, cpu in (("digits", [110.0, 60.0, 300.0]), ("digits grpcio", [100.0, 50.0, 100.0]))
    }
    machine = MACHINE | {"commit": "c", "date": "d"}
    record = {"passed_on": {"machine": machine, "calls": {"ServerLive": servers}}}
    shown = table.table(record)
    assert "| ServerLive, passed on, CPU over grpcio's | ≤ 1.15 | 1.20 | MISSED |" in shown
    assert "| ServerLive | digits | 3 | 110.0 | 1.20 | 1,000 |" in shown


def test_connections_are_judged_by_the_memory_of_all_of_them() -> None:
    figures = {"alone_mb": 100.0, "idle_mb": 120.0, "rss_mb": 140.0, "requests_per_second": 5e4}
    found = {"idle": 2000, "busy": 500, "servers": {"digits": figures}}
    record = {"connections": {"machine": MACHINE | {"commit": "c", "date": "d"}, **found}}
    shown = table.table(record)
    assert (
        "| linear, 2,000 idle and 500 busy connections, RSS in MB | ≤ 150 | 140.00 | met |" in shown
    )
    assert "| digits | 100 | 120 | 140 | 50,000 |" in shown


def test_the_tail_is_judged_at_a_share_of_the_capacity_that_leaves_room() -> None:
    loads = [
        {"share": share, "latency_ms": {"p50": 1.0, "p99": p99}, "statuses": {"OK": ok, "X": 10}}
        for share, p99, ok in ((0.7, 2.5, 2000), (0.7, 1.0, 900), (0.7, 1.5, 2000), (1, 9, 2000))
    ]
    servers = [
        {"contestant": name, "model": "linear", "loads": loads} for name in ("digits", "triton")
    ]
    (verdict,) = targets.load_verdicts({"servers": servers})
    assert verdict.text == "digits, linear at 70% of capacity, p99 over p50"
    assert verdict.value == 2.5
    assert verdict.met


def test_an_idle_connection_is_greeted_and_kept(running: Running) -> None:
    with connections.idle(running.server.grpc_port):
        assert running.stub.ServerLive(pb.ServerLiveRequest()).live


def test_calls_that_are_passed_on_are_answered(running: Running, digits: Digits) -> None:
    image = digits.images[:1]
    model = Model("classifier", "fp32", Path(), Path(), image, np.zeros((1, 2), np.float32))
    checker = Checker(running.server.grpc_port, wire.V2, model, fixed=False)
    for call, message in passed_on.calls(model).items():
        assert checker.ask(passed_on.SERVICE + call.partition(" ")[0], message)
    checker.close()


def test_the_best_of_all_sizes_of_request_is_a_figure() -> None:
    rounds = [{"images_per_second": {"1": 1.0, "32": best, "256": 2.0}} for best in (9.0, 7.0, 8.0)]
    result = {"contestant": "onnxruntime", "model": "resnet18", "rounds": rounds}
    figure = targets.Figure("onnxruntime", "resnet18", "images_per_second", targets.BEST)
    assert figure.of({"results": [result]}) == 8.0


def test_a_figure_is_the_median_of_the_rounds() -> None:
    record = {
        "results": [
            {
                "contestant": "digits",
                "model": "linear",
                "rounds": [
                    {"cpu_us": cpu, "images_per_second": {"32": 10 * cpu}} for cpu in (1, 9, 2)
                ],
            }
        ]
    }
    assert targets.Figure("digits", "linear", "cpu_us").of(record) == 2
    assert targets.Figure("digits", "linear", "images_per_second", 32).of(record) == 20
    assert targets.Figure("triton", "linear", "cpu_us").of(record) is None


def _record(ours: float, triton: float) -> dict[str, Any]:
    machine = {"processor": "p", "cores": 2, "memory_gib": 8, "python": "3", "versions": {}}
    results = [
        {
            "contestant": name,
            "model": "resnet18",
            "rounds": [{"requests_per_second": rate, "images_per_second": {"1": rate}}],
            "failures": [],
        }
        for name, rate in (("digits", ours), ("triton", triton))
    ]
    plan = {"models": ["resnet18"], "rounds": 1, "seconds": 1, "models_served": 7}
    return {
        "machine": machine | {"commit": "c", "date": "d"},
        "h2load": "nghttp2",
        "peers": {},
        "plan": plan | {"noop_style": "sync"},
        "results": results,
        "skipped": {"mlserver": "not installed"},
        "tuning": [],
    }
