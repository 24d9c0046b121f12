"""docker-compose.yml with Compose v2 and the images that `make images` built: `make compose-test`.

Without Grafana, whose image is not ours to build: its panels' queries are asked instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import LANE_ANSWERS
from containers import ROOT, docker, run, until
from stack import MODEL, PUBLISHED, Stack, stack, tally
from test_prometheus import BOARDS, DRIFT_JUDGED, VARIABLES, has_data, wait_for_rules, wait_until

from deploy.agreement import one_bucket_above
from serving.client import Client, Outcome

BACKEND = ("train", "secrets", "serving", "prometheus")
WRONG_EVERY = 10


@dataclass(frozen=True)
class Served:
    """A stack that was brought up by one command, and the tally of a first load, all scraped."""

    stack: Stack
    tally: dict[str, Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """All but Grafana; each request and label of the load is counted from 0."""
    with stack(tmp_path_factory.mktemp("compose")) as started:
        started.compose("up", "--detach", "--no-build", "--wait", "prometheus", timeout=240)
        started.prometheus.wait_for_scrape()
        options = ("--requests=400", "--clients=2", f"--wrong-every={WRONG_EVERY}")
        first = started.load(*options)
        wait_until(started.prometheus, DRIFT_JUDGED)
        wait_for_rules(started.prometheus)
        yield Served(started, first)


def test_one_command_trains_serves_and_watches(served: Served) -> None:
    containers = served.stack.containers()
    states = {name: each["State"] for name, each in containers.items()}
    assert set(states) == set(BACKEND)
    assert {name: states[name]["ExitCode"] for name in ("train", "secrets")} == {
        "train": 0,
        "secrets": 0,
    }
    healthy = {name: states[name]["Health"]["Status"] for name in ("serving", "prometheus")}
    assert healthy == {"serving": "healthy", "prometheus": "healthy"}
    finished = states["train"]["FinishedAt"], states["serving"]["StartedAt"]
    assert finished == tuple(sorted(finished))
    assert LANE_ANSWERS in served.stack.logs("serving")
    with Client(served.stack.address) as client:
        told = {each.model for each in client.quality()}
    assert told == set(PUBLISHED)


def test_another_container_classifies_by_the_services_name(served: Served) -> None:
    counted = served.tally
    assert (counted["requests"], counted["versions"]) == (400, {"1": 400})
    assert (counted["lost"], counted["feedback_refused"]) == (0, 0)
    assert counted["rows"] == counted["right"] + counted["wrong"]
    wrong = 1 / WRONG_EVERY
    assert counted["right"] / counted["rows"] == pytest.approx(1 - wrong, abs=0.05)


def test_prometheus_shows_the_accuracy_that_the_client_counted(served: Served) -> None:
    counted, value = served.tally, served.stack.prometheus.value
    of = f'model="{MODEL}",version="1"'
    right = value(f'sum(inference_feedback_total{{{of},correct="true"}})')
    wrong = value(f'sum(inference_feedback_total{{{of},correct="false"}})')
    assert (right, wrong) == (counted["right"], counted["wrong"])
    assert value(f"sum(inference_inferences_total{{{of}}})") == counted["rows"]
    recorded = value(f"model_version:inference_accuracy:ratio_increase5m{{{of}}}")
    assert recorded == pytest.approx(right / (right + wrong), abs=0.01)


def test_prometheus_shows_latencies_that_are_not_above_the_clients(served: Served) -> None:
    counted, value = served.tally, served.stack.prometheus.value
    of = f'model="{MODEL}",version="1"'
    assert value(f"sum(inference_request_seconds_count{{{of}}})") == counted["requests"]
    buckets = f"sum by (le) (inference_request_seconds_bucket{{{of}}})"
    for quantile, seconds in ((0.5, counted["p50_seconds"]), (0.99, counted["p99_seconds"])):
        seen = value(f"histogram_quantile({quantile}, {buckets})")
        assert 0 < seen <= one_bucket_above(seconds)


def test_all_rules_and_alerts_are_loaded_and_can_be_evaluated(served: Served) -> None:
    committed = [
        rule.get("record") or rule["alert"]
        for file in ("recording_rules.yml", "alerts.yml")
        for group in yaml.safe_load((ROOT / "deploy/prometheus" / file).read_text())["groups"]
        for rule in group["rules"]
    ]
    rules = [rule for group in served.stack.prometheus.rule_groups() for rule in group.rules]
    assert sorted(rule.name for rule in rules) == sorted(committed)
    assert {rule.name: rule.error for rule in rules if rule.error} == {}
    assert served.stack.prometheus.query("up")[0].labels == {
        "__name__": "up",
        "instance": "serving:8002",
        "job": "digits",
    }


def test_every_query_of_the_dashboards_returns_data(served: Served) -> None:
    """But for the panel that has none as long as nothing goes wrong."""
    empty = {
        panel["title"]
        for board in BOARDS.values()
        for panel in board["panels"]
        for target in panel.get("targets", [])
        if not has_data(served.stack.prometheus, filled_in(target["expr"]))
    }
    assert empty == {"Refused versions"}


def filled_in(expression: str) -> str:
    """As Grafana asks for it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def test_containers_are_as_closed_as_the_file_says(served: Served) -> None:
    for name, container in served.stack.containers().items():
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert (host["CapDrop"], host["CapAdd"] or []) == (
            ["ALL"],
            ["CAP_CHOWN"] if name == "secrets" else [],
        )
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] == 4096
        bindings = [each for ports in (host["PortBindings"] or {}).values() for each in ports]
        assert {each["HostIp"] for each in bindings} <= {"127.0.0.1"}
        assert container["Config"]["User"] in (
            ("0:0",) if name == "secrets" else ("10001:10001", "nobody")
        )
    status = served.stack.compose("exec", "--no-TTY", "serving", "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000\n" in status
    assert "CapBnd:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status


def test_a_secret_can_be_read_by_whom_it_is_for_and_nobody_else(served: Served) -> None:
    inside = ("exec", "--no-TTY", "serving")
    stat = ("stat", "--format=%n %u:%g %a", "/run/secrets/feedback-key")
    told = served.stack.compose(*inside, *stat, "/run/secrets/grafana-password").splitlines()
    assert told == [
        "/run/secrets/feedback-key 10001:10001 400",
        "/run/secrets/grafana-password 472:0 400",
    ]
    serving = served.stack.containers()["serving"]["Id"]
    key = docker("exec", serving, "cat", "/run/secrets/feedback-key")
    assert len(bytes.fromhex(key)) == 32
    other = run("exec", serving, "cat", "/run/secrets/grafana-password")
    assert (other.returncode, other.stdout) == (1, "")
    assert "Permission denied" in other.stderr
    for container in served.stack.containers().values():
        assert key not in str(container)


@dataclass(frozen=True)
class Changed:
    """What came of a load during which a version was published and the server restarted."""

    tally: dict[str, Any]
    exit_code: int
    same_process: bool  # answered with the new version, before the restart
    outcomes: list[Outcome]  # of labels for what was predicted before the restart


@pytest.fixture(scope="module")
def changed(served: Served) -> Changed:
    """Each step waits for the load to have felt it."""
    started = served.stack
    answered = f'sum(inference_requests_total{{model="{MODEL}",version="%s",code="OK"}}) > %d'
    before = started.containers()["serving"]["State"]["StartedAt"]
    started.compose("--profile=load", "up", "--detach", "--no-build", "--no-deps", "load")
    wait_for(started, answered % (1, served.tally["requests"]))
    started.train(f"--models={MODEL}", "--ten-digits=", "--seed=1")
    wait_for(started, answered % (2, 10))
    same = started.containers()["serving"]["State"]["StartedAt"] == before
    with Client(started.address) as client:
        ids = client.classify(np.zeros((3, 28, 28), np.uint8), MODEL).prediction_ids
    started.compose("restart", "serving", timeout=120)
    with Client(started.address, retry=True) as client:
        until(client.ready, "the server is back")
        until(lambda: client.quality(MODEL, "2")[0].feedback_count > 20, "the load goes on")
        outcomes = [each.outcome for each in client.send_feedback(ids, ["3", "7", "3"])]
    started.compose("--profile=load", "stop", "load", timeout=120)
    state = started.containers()["load"]["State"]
    return Changed(tally(started.logs("load")), state["ExitCode"], same, outcomes)


def wait_for(started: Stack, expression: str) -> None:
    until(lambda: bool(started.prometheus.query(expression)), expression)


def test_a_new_version_is_served_without_a_restart(changed: Changed) -> None:
    assert changed.same_process
    assert set(changed.tally["versions"]) == {"1", "2"}


def test_a_restart_under_load_loses_no_request_and_no_label(changed: Changed) -> None:
    counted = changed.tally
    assert changed.exit_code == 0
    assert (counted["lost"], counted["feedback_refused"]) == (0, 0)
    assert counted["unanswered_tries"] > 0  # it was felt
    assert counted["rows"] == counted["right"] + counted["wrong"]


def test_labels_for_what_was_predicted_before_a_restart_are_counted_after_it(
    changed: Changed,
) -> None:
    assert changed.outcomes == [Outcome.COUNTED] * 3


def test_what_is_trained_is_not_trained_again_nor_a_secret_drawn_again(
    served: Served, changed: Changed
) -> None:
    """The version that somebody trained meanwhile stays the latest."""
    before = served.stack.containers()
    served.stack.compose("up", "--detach", "--no-build", "--wait", "prometheus")
    after = served.stack.containers()
    said = served.stack.logs("train").splitlines()
    assert said[-2:] == ["kept /models/linear/2", "kept /models/pixel_similarity_0_9/1"]
    assert served.stack.logs("secrets").splitlines() == [
        "drew feedback-key",
        "drew grafana-password",
    ]
    for name in ("serving", "prometheus"):
        assert after[name]["Id"] == before[name]["Id"]
        assert after[name]["State"]["StartedAt"] == before[name]["State"]["StartedAt"]


def test_nothing_is_left_when_it_is_taken_down(served: Served) -> None:
    assert len(served.stack.left()) > 8
    served.stack.remove()
    assert served.stack.left() == []
