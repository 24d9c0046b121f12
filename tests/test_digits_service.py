"""The digits.v1 service over a real server: from the prediction's id to what GetQuality says."""

from __future__ import annotations

import math
import re
import resource
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import grpc
import numpy as np
import onnx
import pytest
from conftest import (
    CLASSIFIER_OUTPUTS,
    IMAGES,
    PATIENCE,
    THREES_AND_SEVENS,
    Digits,
    Running,
    publish_classifier,
    publish_echo,
    publish_model,
    save_classifier,
)
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from onnx import helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from model_repository import TensorSpec
from repository_upkeep import rollback
from serving.authorization import Authorization
from serving.client import Client, Drift, ModelQuality, Outcome
from serving.config import ServerConfig
from serving.counted_ids import CountedIds
from serving.datatypes import DATATYPES
from serving.digits import MOST_FEEDBACK, MOST_STREAMS, DigitsServicer, add_digits_service
from serving.errors import StartupError
from serving.families import Exported, Kept
from serving.feedback import Feedback
from serving.metrics import Metrics
from serving.pb import digits_pb2 as pb
from serving.pb import digits_pb2_grpc as pb_grpc
from serving.pb import inference_pb2
from serving.prediction_ids import Signer
from serving.predictions import Prediction
from serving.registry import ModelRegistry
from serving.server import Server
from serving.workers import Supervisor

Serve = Callable[..., AbstractContextManager[Running]]
CODE = grpc.StatusCode
NAMES = pb.FeedbackResult.Outcome
COUNTED = pb.FeedbackResult(outcome=pb.FeedbackResult.COUNTED)


def images_request(images: Any, model: str = "classifier") -> inference_pb2.ModelInferRequest:
    request = inference_pb2.ModelInferRequest(
        model_name=model, raw_input_contents=[images.tobytes()]
    )
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request


def ids_of(answer: inference_pb2.ModelInferResponse) -> list[str]:
    return answer.parameters["prediction_ids"].string_param.split(",")


def feedback_count(running: Running, **labels: str) -> float:
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    return sum(
        s.value
        for s in samples
        if s.name == "inference_feedback_total" and labels.items() <= s.labels.items()
    )


def key_file(directory: Path, *secrets: str) -> Path:
    path = directory / "keys"
    path.write_text("\n".join(secrets))
    return path


@pytest.fixture(scope="module")
def taking(tmp_path_factory: pytest.TempPathFactory, serve: Serve, digits: Digits) -> Iterator[Any]:
    """A server of the classifier and of an echo, for feedback of this module only."""
    path = tmp_path_factory.mktemp("taking")
    publish_classifier(path, digits)
    publish_echo(path, "echo", (-1, 3))
    with serve(path) as running:
        yield running


@pytest.fixture
def stub(taking: Running) -> pb_grpc.DigitsStub:
    return pb_grpc.DigitsStub(taking.channel)


def test_every_answer_has_an_id_for_each_row_that_says_what_was_predicted(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    secret = "a secret of this test"
    request = images_request(digits.images[:3])
    top = images_request(digits.images[:3])
    top.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    with serve(tmp_path, feedback_key_file=key_file(tmp_path, secret)) as running:
        unary = running.stub.ModelInfer(request)
        chosen = running.stub.ModelInfer(top)
        streamed = [each.infer_response for each in running.stub.ModelStreamInfer(iter([request]))]
    labels = np.frombuffer(unary.raw_output_contents[1], "<i8").tolist()
    shares = np.frombuffer(unary.raw_output_contents[0], "<f4").reshape(3, 2).max(axis=1)
    signer = Signer([secret.encode()])
    for answer in (unary, chosen, *streamed):
        read = [signer.read(text) for text in ids_of(answer)]
        assert [(each.model, each.version) for each in read] == [("classifier", 1)] * 3
        assert [each.label for each in read] == labels
        assert [each.confidence for each in read] == pytest.approx(shares, abs=2e-5)
    assert len(streamed) == 1


def test_a_server_can_answer_without_ids_and_takes_labels_for_those_of_others(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    secret = "a secret of this test"
    keys = key_file(tmp_path, secret)
    with serve(tmp_path, feedback_key_file=keys, prediction_ids=False) as running:
        answer = running.stub.ModelInfer(images_request(digits.images[:3]))
        with Client(running.address) as client:
            assert client.classify(digits.images[:3], "classifier").prediction_ids == ()
        (of_another,) = Signer([secret.encode()]).ids(
            "classifier", "1", 2, [Prediction(0, 1.0, 1.0, 0.1)]
        )
        assert outcome(running, of_another) == "counted"
    assert dict(answer.parameters) == {}
    assert len(np.frombuffer(answer.raw_output_contents[1], "<i8")) == 3


def test_a_model_without_class_labels_gives_no_ids(running: Running) -> None:
    request = inference_pb2.ModelInferRequest(model_name="echo")
    metadata = running.stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="echo"))
    for tensor in metadata.inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[1, 3])
        size = np.dtype(DATATYPES[tensor.datatype].dtype).itemsize
        request.raw_input_contents.append(bytes(12 if tensor.datatype == "BYTES" else 3 * size))
    answer = running.stub.ModelInfer(request)
    assert len(answer.outputs) == len(metadata.outputs)
    assert dict(answer.parameters) == {}


def fix_rows(path: Path, digits: Digits) -> None:
    """The classifier, of exactly two images."""
    save_classifier(path, digits)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)


def shift_labels(path: Path, digits: Digits) -> None:
    """The classifier, of which every label is one too high."""
    save_classifier(path, digits)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "right"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
    model.graph.node.append(helper.make_node("Add", ["right", "one"], ["labels"]))
    onnx.save(model, path)


def test_models_that_are_not_batched_or_break_their_labels_are_answered(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    fixed = tuple(
        TensorSpec(each.name, each.datatype, (2, *each.shape[1:]))
        for each in (IMAGES, *CLASSIFIER_OUTPUTS)
    )
    publish_model(
        tmp_path,
        "fixed",
        lambda path: fix_rows(path, digits),
        fixed[:1],
        fixed[1:],
        THREES_AND_SEVENS,
    )
    publish_model(
        tmp_path,
        "shifted",
        lambda path: shift_labels(path, digits),
        (IMAGES,),
        CLASSIFIER_OUTPUTS,
        THREES_AND_SEVENS,
    )
    secret = "a secret of this test"
    classes = digits.classes[:2].tolist()
    assert classes == [0, 1]
    with serve(tmp_path, feedback_key_file=key_file(tmp_path, secret)) as running:
        of_two = ids_of(running.stub.ModelInfer(images_request(digits.images[:2], "fixed")))
        broken = ids_of(running.stub.ModelInfer(images_request(digits.images[:2], "shifted")))
    signer = Signer([secret.encode()])
    assert [signer.read(text).label for text in of_two] == classes
    assert signer.read(broken[0]).label == 1
    assert broken[1:] == [""]


def test_labels_come_back_as_counts_and_as_quality(
    taking: Running, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    truths = ["37"[each] for each in digits.classes]
    truths[0], truths[1] = "5", "3"  # no class of the model; a wrong one
    request = pb.GetQualityRequest(model_name="classifier")
    before = stub.GetQuality(request).models[0]
    with Client(taking.address) as client:
        answer = client.classify(digits.images, "classifier")
        results = client.send_feedback(answer.prediction_ids, truths)
        again = client.send_feedback(answer.prediction_ids[:2], truths[:2])
        (after,) = client.quality("classifier", "1")
    assert len(answer.prediction_ids) == len(digits.images) > 64  # so that it took several
    assert {each.outcome for each in results} == {Outcome.COUNTED}
    assert {each.outcome for each in again} == {Outcome.REPEATED}
    right = sum(map(str.__eq__, answer.labels, truths))
    assert after.feedback_count - before.feedback_count == len(truths)
    assert after.correct_count - before.correct_count == right
    assert after.accuracy
    assert after.accuracy.value == after.correct_count / after.feedback_count
    assert after.accuracy.low < after.accuracy.value < after.accuracy.high
    assert after.confusion["other", "3"] == 1
    assert after.confusion["3", "7"] >= 1
    assert sum(after.confusion.values()) == after.feedback_count
    assert feedback_count(taking, model="classifier") == after.feedback_count
    assert feedback_count(taking, model="classifier", correct="true") == after.correct_count
    for (truth, predicted), count in after.confusion.items():
        assert feedback_count(taking, truth=truth, predicted=predicted) == count


def test_a_stream_answers_each_label_in_its_order(
    taking: Running, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    ids = ids_of(taking.stub.ModelInfer(images_request(digits.images[:20])))
    items = [pb.Feedback(prediction_id=text, label="3") for text in (*ids, ids[7], "no id")]
    before = feedback_count(taking)
    results = list(stub.StreamFeedback(iter(items), timeout=PATIENCE))
    outcomes = [NAMES.Name(each.outcome) for each in results]
    assert outcomes == ["COUNTED"] * 20 + ["REPEATED", "MALFORMED"]
    assert feedback_count(taking) == before + 20


def test_a_stream_is_answered_while_it_is_open(
    taking: Running, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    """Each label is sent when the result of the one before is there."""
    ids = ids_of(taking.stub.ModelInfer(images_request(digits.images[:5])))
    sending: SimpleQueue[pb.Feedback | None] = SimpleQueue()
    requests = cast(Iterator[pb.Feedback], iter(sending.get, None))
    answers = iter(stub.StreamFeedback(requests, timeout=PATIENCE))
    results = []
    for text in ids:
        sending.put(pb.Feedback(prediction_id=text, label="7"))
        results.append(next(answers))
    sending.put(None)
    results += answers
    assert results == [COUNTED] * 5


def test_an_open_stream_does_not_keep_the_server_from_stopping(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    sending: SimpleQueue[pb.Feedback | None] = SimpleQueue()
    requests = cast(Iterator[pb.Feedback], iter(sending.get, None))
    with serve(tmp_path) as running:
        (text,) = ids_of(running.stub.ModelInfer(images_request(digits.images[:1])))
        answers = iter(pb_grpc.DigitsStub(running.channel).StreamFeedback(requests))
        sending.put(pb.Feedback(prediction_id=text, label="3"))
        assert next(answers) == COUNTED
        running.server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() in (CODE.CANCELLED, CODE.UNAVAILABLE)
    sending.put(None)


class Open:
    """A stream that one label was sent on, and that stays open."""

    def __init__(self, stub: pb_grpc.DigitsStub) -> None:
        self._sending: SimpleQueue[pb.Feedback | None] = SimpleQueue()
        self._sending.put(pb.Feedback(prediction_id="no id", label="3"))
        requests = cast(Iterator[pb.Feedback], iter(self._sending.get, None))
        self._call: Any = stub.StreamFeedback(requests, timeout=PATIENCE)

    def answer(self) -> str:
        """What became of the label, or of the stream."""
        try:
            return NAMES.Name(next(self._call).outcome)
        except grpc.RpcError as error:
            return cast(grpc.Call, error).code().name

    def cancel(self) -> None:
        self._call.cancel()
        self._sending.put(None)  # so that the client's thread ends


def test_streams_have_a_limit_and_those_that_are_cancelled_make_room(
    stub: pb_grpc.DigitsStub,
) -> None:
    streams = [Open(stub) for _ in range(MOST_STREAMS)]
    answers = {each.answer() for each in streams}
    streams.append(Open(stub))
    refused = streams[-1].answer()
    for each in streams:
        each.cancel()
    end = time.monotonic() + PATIENCE
    after = refused
    while after == refused and time.monotonic() < end:  # the server hears of it in a moment
        last = Open(stub)
        after = last.answer()
        last.cancel()
    assert (answers, refused, after) == ({"MALFORMED"}, "RESOURCE_EXHAUSTED", "MALFORMED")


def test_a_bad_item_fails_no_other(
    taking: Running, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    first, second = ids_of(taking.stub.ModelInfer(images_request(digits.images[:2])))
    (forged,) = Signer([b"a secret of others"]).ids(
        "classifier", "1", 2, [Prediction(0, 1.0, 1.0, 0.1)]
    )
    items = [(first, "3"), (forged, "3"), ("", "3"), (second, ""), (second, "7")]
    request = pb.SendFeedbackRequest(
        feedback=[pb.Feedback(prediction_id=text, label=label) for text, label in items]
    )
    results = stub.SendFeedback(request).results
    outcomes = [NAMES.Name(each.outcome) for each in results]
    assert outcomes == ["COUNTED", "FORGED", "MALFORMED", "MALFORMED", "COUNTED"]
    assert [bool(each.reason) for each in results] == [False, True, True, True, False]


def test_a_batch_has_a_limit(stub: pb_grpc.DigitsStub) -> None:
    items = [pb.Feedback()] * MOST_FEEDBACK
    assert len(stub.SendFeedback(pb.SendFeedbackRequest(feedback=items)).results) == MOST_FEEDBACK
    with pytest.raises(grpc.RpcError) as caught:
        stub.SendFeedback(pb.SendFeedbackRequest(feedback=[*items, pb.Feedback()]))
    assert caught.value.code() == CODE.INVALID_ARGUMENT
    assert caught.value.details() == "feedback: at most 10000 in one request, got 10001"


def test_quality_is_told_of_what_is_known_and_of_nothing_else(stub: pb_grpc.DigitsStub) -> None:
    def listed(name: str = "", version: str = "") -> list[tuple[str, str]]:
        models = stub.GetQuality(pb.GetQualityRequest(model_name=name, model_version=version))
        return [(each.model_name, each.model_version) for each in models.models]

    assert listed() == listed("classifier") == listed("", "1") == [("classifier", "1")]
    assert listed("echo") == listed("", "7") == []
    for name, version in (("nobody", ""), ("classifier", "7")):
        with pytest.raises(grpc.RpcError) as caught:
            listed(name, version)
        assert caught.value.code() == CODE.NOT_FOUND


def test_what_is_known_without_labels_reaches_the_client(tmp_path: Path) -> None:
    """By gauges that a server's other parts write, in whatever process."""
    metrics, key = Metrics(tmp_path, "1"), ("m", "2")
    metrics.set(Exported.accuracy, 0.98, *key, "holdout")
    metrics.set(Exported.accuracy, 0.5, *key, "probe")
    metrics.set(Exported.probe_passed, 0, *key)
    metrics.set(Exported.estimated_accuracy, 0.9, *key)
    metrics.set(Exported.estimate_reliable, 0, *key)
    metrics.set(Exported.drift, 0.125, *key, "ink")
    metrics.set(Exported.drift, math.nan, *key, "label")
    metrics.set(Kept.window_rows, 1234, *key)
    counted = CountedIds(tmp_path, 1024)
    feedback = Feedback(Signer([b""]), metrics, counted, lambda model, version: None, 60.0)
    server = grpc.server(ThreadPoolExecutor(1))
    config = ServerConfig(drift_window=60.0)
    add_digits_service(
        server, DigitsServicer(feedback, ModelRegistry(), metrics, config), Authorization(config)
    )
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    with Client(address) as client:
        (quality,) = client.quality()
    server.stop(None).wait()
    drift = Drift({"ink": 0.125}, True, 60.0, 1234)
    assert quality == ModelQuality(*key, 0, 0, None, {}, 0.98, 0.5, False, 0.9, False, drift)


def test_ids_that_there_is_no_memory_for_keep_the_server_from_starting(
    tmp_path: Path,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, before[1]))
    try:
        with pytest.raises(StartupError) as caught:
            Server(ServerConfig(model_repository=tmp_path, feedback_memory=1 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(
        r"--feedback-memory: 1073741824 ids of 8 bytes in /\S+: File too large", str(caught.value)
    )


@pytest.mark.parametrize("server", [Server, Supervisor])
def test_a_key_file_that_is_missing_keeps_the_server_from_starting(
    server: Callable[[ServerConfig], object], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    with pytest.raises(StartupError) as caught:
        server(ServerConfig(feedback_key_file=path))
    assert str(caught.value) == f"--feedback-key-file: {path}: No such file or directory"


def test_reflection_describes_the_service(taking: Running) -> None:
    services = ProtoReflectionDescriptorDatabase(taking.channel).get_services()
    assert "digits.v1.Digits" in services


def outcome(running: Running, text: str, label: str = "3") -> str:
    with Client(running.address) as client:
        return client.send_feedback([text], [label])[0].outcome


def test_a_restart_with_the_same_key_counts_what_was_predicted_before(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    old = key_file(tmp_path, "a secret of this test")
    request = images_request(digits.images[:2])
    with serve(tmp_path, feedback_key_file=old) as running:
        first, second = ids_of(running.stub.ModelInfer(request))
    changed = key_file(tmp_path, "the secret after it", "a secret of this test")
    with serve(tmp_path, feedback_key_file=changed) as running:
        assert outcome(running, first) == "counted"
        third, _ = ids_of(running.stub.ModelInfer(request))
    with serve(tmp_path) as running:
        assert outcome(running, second) == outcome(running, third) == "forged"
        assert feedback_count(running) == 0


def test_labels_of_a_version_count_after_it_was_replaced_and_rolled_back_but_not_deleted(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    repository = tmp_path / "models"
    for _ in range(2):
        publish_classifier(repository, digits)
    keys = key_file(tmp_path, "a secret of this test")
    with serve(repository, feedback_key_file=keys) as running:
        ids = ids_of(running.stub.ModelInfer(images_request(digits.images[:3])))
        publish_classifier(repository, digits)
        running.server.inference.control.poll()
        assert running.server.inference.registry.versions("classifier") == [3]
        assert outcome(running, ids[0]) == "counted"
        assert feedback_count(running, version="2") == 1
    for _ in range(2):
        rollback(repository / "classifier", lambda line: None)
    with serve(repository, feedback_key_file=keys) as running:
        assert running.server.inference.registry.versions("classifier") == [1]
        assert outcome(running, ids[1]) == "counted"
        assert feedback_count(running, version="2") == 1
    (repository / "classifier" / ".withdrawn-2").rename(tmp_path / "gone")
    with serve(repository, feedback_key_file=keys) as running:
        assert outcome(running, ids[2]) == "unknown_model"
