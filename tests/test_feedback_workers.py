"""Labels that come to other processes than their predictions, of which one is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
from conftest import PATIENCE, Digits, publish_classifier
from test_digits_service import ids_of, images_request
from test_workers import Workers, supervised

from serving.pb import digits_pb2 as pb
from serving.pb import digits_pb2_grpc as pb_grpc
from serving.pb import inference_pb2_grpc

NAMES = pb.FeedbackResult.Outcome


class Connection:
    """A connection of its own, to whichever worker the kernel chooses."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.inference = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.digits = pb_grpc.DigitsStub(channel)

    def send(self, items: list[tuple[str, str]]) -> list[str]:
        request = pb.SendFeedbackRequest(
            feedback=[pb.Feedback(prediction_id=text, label=label) for text, label in items]
        )
        answer = self.digits.SendFeedback(request, timeout=PATIENCE, wait_for_ready=True)
        return [NAMES.Name(each.outcome) for each in answer.results]


@contextlib.contextmanager
def connection(workers: Workers) -> Iterator[Connection]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(workers.process.address, options) as channel:
        yield Connection(channel)


def predict(workers: Workers, digits: Digits) -> list[tuple[str, int]]:
    """Every digit's prediction id and the index of its predicted class, by many connections."""
    predicted: list[tuple[str, int]] = []
    for start in range(0, len(digits.images), 16):
        with connection(workers) as one:
            request = images_request(digits.images[start : start + 16])
            answer = one.inference.ModelInfer(request, timeout=PATIENCE, wait_for_ready=True)
            labels = np.frombuffer(answer.raw_output_contents[1], "<i8").tolist()
            predicted += zip(ids_of(answer), labels, strict=True)
    return predicted


def send_until_taken(workers: Workers, items: list[tuple[str, str]]) -> Counter[str]:
    """By a connection for each try: one that is cut off while a worker dies is made again."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(grpc.RpcError), connection(workers) as one:
            return Counter(one.send(items))
    raise AssertionError("no worker took the labels")


def check(workers: Workers, expected: Counter[tuple[str, str]]) -> None:
    """The sums on /metrics, and what any worker tells of them, are these counts."""
    name = "inference_feedback_total"
    for (truth, predicted), count in expected.items():
        assert workers.metric(name, truth=truth, predicted=predicted) == count
    assert workers.metric(name) == expected.total()
    with connection(workers) as one:
        (model,) = one.digits.GetQuality(pb.GetQualityRequest(), timeout=PATIENCE).models
    assert {(c.truth, c.predicted): c.count for c in model.confusion} == dict(expected)
    assert model.feedback_count == expected.total()


def test_labels_are_counted_to_the_last_image_though_a_worker_is_killed(
    tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    source = np.random.default_rng(1)
    names = ("3", "7")
    with supervised(tmp_path) as process:
        workers = process.started()
        predicted = predict(workers, digits)
        wrong = source.random(len(predicted)) < 0.1  # a known share of wrong labels
        truths = [names[int(c) ^ int(w)] for c, w in zip(digits.classes, wrong, strict=True)]
        items = [(text, truth) for (text, _), truth in zip(predicted, truths, strict=True)]
        expected = Counter(
            (truth, names[index]) for (_, index), truth in zip(predicted, truths, strict=True)
        )
        half = len(items) // 2
        outcomes = [Counter(send_until_taken(workers, [each])) for each in items[:half]]
        assert sum(outcomes, Counter()) == {"COUNTED": half}

        batches = [items[start : start + 5] for start in range(half, len(items), 5)]
        sending = threading.Thread(
            target=lambda: [send_until_taken(workers, batch) for batch in batches]
        )
        sending.start()
        workers.kill(0)
        workers.wait_for_replacement(0)
        sending.join()
        for _ in range(4):
            assert send_until_taken(workers, items) == {"REPEATED": len(items)}
        check(workers, expected)
        after = predict(workers, digits)[:10]  # among them of the one that took its place
        assert send_until_taken(workers, [(text, "8") for text, _ in after]) == {"COUNTED": 10}
        assert workers.metric("inference_feedback_total", truth="other") == 10
        os.kill(workers.process.popen.pid, signal.SIGTERM)
        assert workers.process.finish() == 0


def test_workers_with_the_same_key_count_what_was_predicted_before_a_restart(
    tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path / "models", digits)
    keys = tmp_path / "keys"
    keys.write_text("a secret of this test")
    items: list[tuple[str, str]] = []
    for _ in range(2):
        with supervised(tmp_path / "models", "--feedback-key-file", str(keys)) as process:
            workers = process.started()
            if items:
                assert send_until_taken(workers, items) == {"COUNTED": len(items)}
                assert send_until_taken(workers, items) == {"REPEATED": len(items)}
            else:
                items = [(text, "3") for text, _ in predict(workers, digits)]
            os.kill(workers.process.popen.pid, signal.SIGTERM)
            assert workers.process.finish() == 0


def test_a_worker_is_replaced_though_its_labels_cannot_be_settled(
    tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    with supervised(tmp_path) as process:
        workers = process.started()
        with connection(workers) as one:
            (text, *_) = ids_of(
                one.inference.ModelInfer(images_request(digits.images[:1]), timeout=PATIENCE)
            )
        table = table_of(workers.pids[0])
        aside = table.with_name("aside")
        table.rename(aside)
        table.symlink_to(table)  # nobody can open that
        workers.kill(0)
        workers.process.wait_for("not settled: .*Too many levels of symbolic links")
        aside.replace(table)
        workers.wait_for_replacement(0)
        assert send_until_taken(workers, [(text, "3")]) == {"COUNTED": 1}


def table_of(pid: int) -> Path:
    """The file of counted ids that a process has mapped; one file, however many maps."""
    maps = Path(f"/proc/{pid}/maps").read_text()  # not fd/, where what is listed may be closed
    (table,) = set(re.findall(r"/\S+/counted\.ids$", maps, flags=re.MULTILINE))
    return Path(table)
