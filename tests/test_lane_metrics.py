"""What is counted is the same over the lane as over grpcio, whichever way a request comes."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import PATIENCE, Digits, Running, publish_model, publish_proven, save, until
from numpy.typing import NDArray
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from model_repository import ONNX_PLATFORM, TensorSpec, Variant
from serving.pb import inference_pb2 as pb

pytestmark = pytest.mark.lane

Serve = Callable[..., AbstractContextManager[Running]]
Counts = dict[tuple[str, tuple[tuple[str, str], ...]], float]
# Gauges and sums that the clock or chance decides; what is counted in them has series of its own.
OF_THE_LANE = ("inference_connections", "inference_stalled")
OF_TIME = ("_seconds", "_seconds_sum", "_seconds_bucket", "_created")


def request(digits: Digits, rows: int, **fields: Any) -> pb.ModelInferRequest:
    array = digits.images[:rows]
    made = pb.ModelInferRequest(
        model_name="proven",
        raw_input_contents=[array.tobytes()],
        **fields,
    )
    made.inputs.add(name="images", datatype="UINT8", shape=array.shape)
    return made


def typed(digits: Digits) -> pb.ModelInferRequest:
    """What the lane passes on."""
    made = pb.ModelInferRequest(model_name="proven")
    tensor = made.inputs.add(name="images", datatype="UINT8", shape=[2, 28, 28])
    tensor.contents.uint_contents.extend(digits.images[:2].flatten().tolist())
    return made


def ask(running: Running, message: pb.ModelInferRequest) -> str:
    """The status of one call."""
    try:
        running.stub.ModelInfer(message, timeout=PATIENCE)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def ask_all(running: Running, digits: Digits) -> list[str]:
    """One after the other, so that each is a batch of its own: answered and refused, natively and
    not."""
    late = request(digits, 1)
    late.parameters["timeout"].int64_param = 1
    misshapen = request(digits, 1)
    misshapen.inputs[0].shape[2] = 27
    unknown = request(digits, 1)
    unknown.model_name = "unknown"
    said = [
        ask(running, each)
        for each in (
            *(request(digits, rows) for rows in (1, 1, 4)),
            *(typed(digits), typed(digits)),
            *(late, misshapen, unknown),
            request(digits, 9),
        )
    ]
    for rows in (1, 3):  # a stream each, as the next request waits for the answer before
        for answer in running.stub.ModelStreamInfer(
            iter([request(digits, rows, id="streamed")]), timeout=PATIENCE
        ):
            said.append(answer.error_message or answer.infer_response.id)
    return said


def counts(running: Running) -> Counts:
    """What /metrics shows that calls decide, and not the clock."""
    with urllib.request.urlopen(running.metrics_url, timeout=PATIENCE) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        if family.name.startswith(("inference_", "nv_")) and not family.name.startswith(OF_THE_LANE)
        for sample in family.samples
        if not sample.name.endswith(OF_TIME) and "duration" not in sample.name
    }


def statistics(running: Running) -> list[tuple[int, ...]]:
    """The counts of ModelStatistics."""
    (found,) = running.stub.ModelStatistics(pb.ModelStatisticsRequest(name="proven")).model_stats
    stats = found.inference_stats
    sized = [
        (batch.batch_size, batch.compute_infer.count, batch.compute_input.count)
        for batch in found.batch_stats
    ]
    counted = (found.inference_count, found.execution_count, stats.success.count, stats.fail.count)
    return [counted, (stats.queue.count, stats.compute_infer.count), *sorted(sized)]


def idle(running: Running) -> bool:
    """Nothing is inside, waits or runs any more; and the model was probed."""
    found = counts(running)
    busy = ("in_flight_requests", "pending_requests", "instances_busy")
    at_rest = all(v == 0 for (name, _), v in found.items() if name.endswith(busy))
    probed = any(dict(labels).get("source") == "probe" for _, labels in found)
    return at_rest and probed


def test_the_same_calls_are_counted_the_same_by_either_transport(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    holdout: dict[str, NDArray[Any]] = {"images": digits.images[:40], "labels": digits.classes[:40]}
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy=0.9)
    publish_proven(tmp_path, digits, variant, holdout=holdout)
    said, counted, told = [], [], []
    for transport in ("grpcio", "native"):
        with serve(tmp_path, transport=transport, max_batch_size=8) as running:
            said.append(ask_all(running, digits))
            until(lambda running=running: idle(running))  # type: ignore[misc]
            counted.append(counts(running))
            told.append(statistics(running))
    assert said[0] == said[1]
    assert said[0].count("OK") == 5
    assert said[0].count("streamed") == 2
    assert counted[0] == counted[1]
    assert told[0] == told[1]
    version = ("model", "proven"), ("version", "1")
    assert counted[1]["inference_requests_total", (("code", "OK"), *version)] == 7
    assert counted[1]["inference_executions_total", version] == 7
    assert counted[1]["inference_confidence_ratio_count", version] == 14
    refused = np.array([v for (name, _), v in counted[1].items() if "rejected" in name])
    assert refused.sum() == 4


PAIR = {"in_b": "FP32", "in_a": "INT64"}


def publish_pair(repository: Path) -> None:
    """Gives back its two inputs."""
    kinds = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}

    def save_pair(path: Path) -> None:
        outputs = {name.replace("in", "out"): datatype for name, datatype in PAIR.items()}
        graph = helper.make_graph(
            [helper.make_node("Identity", [f"in_{x}"], [f"out_{x}"]) for x in "ba"],
            "pair",
            [helper.make_tensor_value_info(n, kinds[d], ["N", 2]) for n, d in PAIR.items()],
            [helper.make_tensor_value_info(n, kinds[d], ["N", 2]) for n, d in outputs.items()],
        )
        save(graph, path)

    inputs, outputs = (
        tuple(TensorSpec(name.replace("in", new), kind, (-1, 2)) for name, kind in PAIR.items())
        for new in ("in", "out")
    )
    publish_model(repository, "pair", save_pair, inputs, outputs)


def pair_arrays(rows: int) -> dict[str, NDArray[np.generic]]:
    numbers = np.arange(2 * rows).reshape(rows, 2)
    return {"in_b": numbers.astype(np.float32), "in_a": -numbers.astype(np.int64)}


def pair(rows: int, *, raw: bool) -> pb.ModelInferRequest:
    """For the lane itself, or, with typed contents, to be passed on."""
    made = pb.ModelInferRequest(model_name="pair")
    for name, array in pair_arrays(rows).items():
        tensor = made.inputs.add(name=name, datatype=PAIR[name], shape=array.shape)
        if raw:
            made.raw_input_contents.append(array.tobytes())
        elif PAIR[name] == "FP32":
            tensor.contents.fp32_contents.extend(array.flatten().tolist())
        else:
            tensor.contents.int64_contents.extend(array.flatten().tolist())
    return made


def test_batches_hold_requests_that_came_either_way_also_of_several_inputs(
    tmp_path: Path, serve: Serve
) -> None:
    """In the order that the manifest has inputs in, which is not that of their names."""
    publish_pair(tmp_path)
    options: dict[str, Any] = {"max_batch_size": 8, "max_queue_delay": 60.0}
    with serve(tmp_path, transport="native", **options) as running:
        calls = [
            running.stub.ModelInfer.future(message, timeout=PATIENCE)
            for message in (pair(3, raw=True), pair(5, raw=False))
        ]  # they run once they fill a batch
        trailing = [dict(call.trailing_metadata()) for call in calls]
        assert [each["batch-size"] for each in trailing] == ["8", "8"]
        for call, rows in zip(calls, (3, 5), strict=True):
            for name, output in zip(
                ("out_b", "out_a"), call.result().raw_output_contents, strict=True
            ):
                assert output == pair_arrays(rows)[f"in_{name[-1]}"].tobytes()
