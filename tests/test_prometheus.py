"""A real Prometheus scrapes two workers, one of which dies, under a load of labelled digits.

Every rule and every panel of the dashboards is asked of it afterwards.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import PATIENCE, ROOT, Digits, publish_classifier
from test_training import trained
from test_workers import Workers, supervised

from deploy import load
from deploy.agreement import compare
from deploy.grafana import __main__ as dashboards
from deploy.prometheus_server import Prometheus, prometheus
from serving.client import Client, RequestFailed
from training.dataset import Dataset
from training.run import publish_trained

pytestmark = [pytest.mark.prometheus, pytest.mark.slow]

MODEL = "linear"
PASSES = 4  # over the images
WRONG = 1 / load.WRONG_EVERY
# Drift is looked for every few seconds; until that has seen rows its gauges are NaN.
DRIFT_JUDGED = "inference_drift_psi >= 0"
# What Grafana fills in.
VARIABLES = {"$model": ".*", "$version": ".*", "$__rate_interval": "1m", "$__range": "5m"}
BOARDS = {name: json.loads(dashboards.text(board())) for name, board in dashboards.BOARDS.items()}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


@dataclass(frozen=True)
class Observed:
    """What clients counted, and a Prometheus that has scraped it all."""

    prometheus: Prometheus
    tally: load.Tally
    images: int


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory, digits: Digits, digits_3_7: Dataset
) -> Iterator[Observed]:
    """A load with a known share of wrong labels, during which a worker is killed; then a model that
    is withdrawn, one that is broken, and what is refused."""
    repository = tmp_path_factory.mktemp("models")
    publish_trained(trained(digits_3_7, MODEL), digits_3_7, MODEL, repository)
    publish_classifier(repository, digits, "spare")
    broken = publish_classifier(repository, digits, "broken") / "model.onnx"
    broken.write_bytes(broken.read_bytes()[:-1])
    options = ("--probe-interval", "1", "--poll-interval", "0.2", "--drift-window", "60")
    with supervised(repository, *options) as supervisor:
        workers = supervisor.started()
        target = workers.metrics_url.removeprefix("http://").removesuffix("/metrics")
        with prometheus([target]) as metrics:
            metrics.wait_for_scrape()
            tally, images = labelled_load(workers, digits_3_7)
            refusals(workers.process.address)
            shutil.rmtree(repository / "spare")
            wait_until(metrics, 'sum(inference_instances{model="spare"}) == 0')
            wait_until(metrics, DRIFT_JUDGED)
            wait_for_rules(metrics)
            yield Observed(metrics, tally, images)


def labelled_load(workers: Workers, dataset: Dataset) -> tuple[load.Tally, int]:
    """What the clients counted of `PASSES` over all images, with a worker killed halfway; and how
    many images that were."""
    splits = (dataset.train, dataset.calibration, dataset.valid)
    images = np.concatenate([split.images for split in splits] * PASSES)
    classes = np.concatenate([split.labels for split in splits] * PASSES)
    labels = [dataset.labels[index] for index in classes]
    batches = list(load.batches(images, load.mislabelled(labels, dataset.labels)))
    half = len(batches) // 2

    def source() -> Iterator[load.Batch]:
        yield from batches[:half]
        workers.kill(1)
        yield from batches[half:]

    tally = load.run(workers.process.address, MODEL, source(), clients=4)
    workers.wait_for_replacement(1)
    return tally, len(images)


def refusals(address: str) -> None:
    """One of each that a healthy server has: no such model, no image, a forged id."""
    with Client(address) as client:
        images = np.zeros((1, 28, 28), np.uint8)
        for model, wrong in (("nobody", images), (MODEL, np.zeros((1, 27, 27), np.uint8))):
            with pytest.raises(RequestFailed):
                client.classify(wrong, model)
        client.send_feedback(["bm90IGEgcHJlZGljdGlvbiBpZA"], ["3"])


def wait_until(metrics: Prometheus, expression: str) -> None:
    """Until the expression has a value. PrometheusError of a query is the test's."""
    end = time.monotonic() + PATIENCE
    while not metrics.query(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.1)


def wait_for_rules(metrics: Prometheus) -> None:
    """Until all groups, and those that they build upon, were evaluated after a last scrape."""
    metrics.wait_for_scrape()
    for _ in range(2):
        asked = time.time()
        while any(group.evaluated < asked for group in metrics.rule_groups()):
            assert time.time() < asked + PATIENCE
            time.sleep(0.1)


def test_counters_equal_the_truth_to_the_last_image_after_a_worker_died(observed: Observed) -> None:
    tally = observed.tally
    of = f'model="{tally.model}",version="{tally.version}"'
    correct = {
        sample.labels["correct"]: sample.value
        for sample in observed.prometheus.query(
            f"sum by (correct) (inference_feedback_total{{{of}}})"
        )
    }
    assert correct == {"true": tally.right, "false": tally.wrong}
    assert tally.rows == tally.right + tally.wrong == observed.images
    assert tally.refused == 0
    assert observed.prometheus.value("sum(inference_worker_restarts_total)") == 1


def test_the_known_share_of_wrong_labels_is_what_the_accuracy_lacks(observed: Observed) -> None:
    """The model itself is wrong for a few, some of which a wrong label makes right."""
    of = f'model="{MODEL}",version="1"'
    right = f'sum(inference_feedback_total{{{of},correct="true"}})'
    accuracy = observed.prometheus.value(f"{right} / sum(inference_feedback_total{{{of}}})")
    holdout = observed.prometheus.value(f'min(inference_accuracy_ratio{{{of},source="holdout"}})')
    assert accuracy == observed.tally.right / observed.tally.rows
    assert accuracy == pytest.approx(holdout * (1 - WRONG) + (1 - holdout) * WRONG, abs=0.02)


def test_windowed_rules_lie_within_what_extrapolation_allows(observed: Observed) -> None:
    """Windows longer than the run hold all of it; increase() takes it to have gone on for up to 1.1
    scrape intervals beyond the last scrape. Shares are right within a point."""
    tally, query = observed.tally, observed.prometheus.value
    accuracy = tally.right / tally.rows
    up = 'timestamp(up{job="digits"})'
    seconds = query(f"{up} - min_over_time({up}[10m:1s])")
    for window in ("5m", "1h", "1d"):
        of = f'{window}{{model="{MODEL}"}}'
        labels = query(f"model_version:inference_feedback:increase{of}")
        assert tally.rows - 0.5 < labels < tally.rows * (1 + 2 / seconds)
        seen = query(f"model_version:inference_accuracy:ratio_increase{of}")
        assert seen == pytest.approx(accuracy, abs=0.01)
        low = query(f"model_version:inference_accuracy_low:ratio_increase{of}")
        high = query(f"model_version:inference_accuracy_high:ratio_increase{of}")
        assert low < accuracy < high
        width = 2 * 1.96 * (accuracy * (1 - accuracy) / tally.rows) ** 0.5
        assert high - low == pytest.approx(width, rel=0.2)


def test_latencies_that_prometheus_sees_are_not_above_the_clients(observed: Observed) -> None:
    rows = {row.what: row for row in compare(observed.prometheus, observed.tally)}
    assert rows["p50 latency"].agrees
    assert rows["p99 latency"].agrees


def test_one_label_more_a_faster_client_and_another_version_do_not_agree(
    observed: Observed,
) -> None:
    tally = observed.tally
    told = {
        "right": replace(tally, right=tally.right + 1),
        "wrong": replace(tally, wrong=tally.wrong + 1),
        "faster": replace(tally, seconds=[1e-6] * tally.requests),
    }
    # What the killed worker answered and no client got, and what was refused, differ anyway.
    usual = differing(observed.prometheus, tally)
    assert {name: differing(observed.prometheus, each) - usual for name, each in told.items()} == {
        "right": {"labels that were right", "accuracy by labels"},
        "wrong": {"labels that were wrong"},
        "faster": {"p50 latency", "p99 latency"},
    }
    all_but_refused = {row.what for row in compare(observed.prometheus, tally)} - {
        "feedback refused"
    }
    assert all_but_refused <= differing(observed.prometheus, replace(tally, version="2"))


def differing(metrics: Prometheus, tally: load.Tally) -> set[str]:
    return {row.what for row in compare(metrics, tally) if not row.agrees}


def test_all_rules_are_evaluated_and_all_that_record_have_values(observed: Observed) -> None:
    rules = [rule for group in observed.prometheus.rule_groups() for rule in group.rules]
    assert {rule.name: rule.error for rule in rules if rule.error} == {}
    recorded = {rule.name for rule in rules if rule.records}
    assert {name for name in recorded if not has_data(observed.prometheus, name)} == set()


def test_all_series_that_alerts_look_at_are_there(observed: Observed) -> None:
    """An alert on a name that nobody exports would be silent for ever."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    text = "\n".join(rule["expr"] for group in groups for rule in group["rules"])
    names = set(re.findall(r"\b(?:\w+:)?inference_\w+(?::\w+)?|\bslo:\w+:\w+", text))
    assert len(names) > 20
    assert {name for name in names if not has_data(observed.prometheus, name)} == set()


def test_what_went_wrong_raises_its_alerts_and_nothing_else_does(observed: Observed) -> None:
    active = observed.prometheus.query("ALERTS")
    found = {(each.labels["alertname"], each.labels.get("model", "")) for each in active}
    assert found - {("InferenceLatencyP99AboveSlo", MODEL)} == {  # as slow a machine may be
        ("InferenceAccuracyBelowHoldout", MODEL),  # by the labels that were wrong on purpose
        ("InferenceModelLoadFailed", "broken"),
        ("InferenceModelNotReady", "broken"),
        ("InferenceWorkerRestarting", ""),
    }


def test_the_dashboards_that_are_committed_are_those_that_the_program_writes() -> None:
    committed = {path.name: path.read_text() for path in dashboards.DIRECTORY.iterdir()}
    assert committed == {
        name: dashboards.text(board()) for name, board in dashboards.BOARDS.items()
    }


def test_panels_fill_the_grid_without_overlap() -> None:
    for board in BOARDS.values():
        cells = [
            (grid["x"] + x, grid["y"] + y)
            for grid in (panel["gridPos"] for panel in board["panels"])
            for x, y in itertools.product(range(grid["w"]), range(grid["h"]))
        ]
        assert len(cells) == len(set(cells))
        assert {x for x, _ in cells} == set(range(24))


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_shows_data(observed: Observed, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        assert has_data(observed.prometheus, expression), expression
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]


def has_data(metrics: Prometheus, expression: str) -> bool:
    """Whether it has a value that is a number."""
    return any(not np.isnan(sample.value) for sample in metrics.query(expression))
