"""deploy/kubernetes in a real cluster, whose nodes have the images: `make kubernetes-test`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import kubectl
import pytest
from client_pods import holdout, run, run_script, start_load, stop_load, tally
from conftest import LANE_ANSWERS
from digits_namespace import (
    REPLICAS,
    create,
    delete,
    have_ended,
    prometheus,
    ready_replicas,
    serving_pods,
)
from kubectl import Cluster, Json, until

from deploy.prometheus_server import Prometheus

MODEL = "mlp_0_9"
VERSION = "1"
MODELS = ("linear_0_9", MODEL)  # that the Job of kubernetes/small trains
ONE_ADDRESS = "digits-serving:8001"
EACH_ADDRESS = "dns:///each.digits-serving-headless:8001"  # see kubernetes/small/pod-names.yaml
REQUESTS = 200
# Seconds: clients look for new replicas when a connection ends, after ten seconds here.
FOUND = 150.0
CLIENTS = 4  # in one load, each with a connection of its own
ROLL_BACK = ("-m", "model_repository", "rollback", f"/models/{MODEL}")

ANSWERED = f'inference_requests_total{{model="{MODEL}",code="OK"}}'
LABELLED = f'inference_feedback_total{{model="{MODEL}"}}'
RIGHT = f'inference_feedback_total{{model="{MODEL}",correct="true"}}'
REFUSED = f'inference_model_load_failures_total{{model="{MODEL}"}}'

# Python that prints, as JSON, what the container that it runs in may do.
CONFINEMENT = """
import errno, json, os
def refusal(directory):
    try:
        open(directory + "/written", "w").close()
    except OSError as error:
        return errno.errorcode[error.errno]
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(json.dumps({
    "users": status["Uid"].split(),
    "groups": status["Gid"].split(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no new privileges": int(status["NoNewPrivs"]),
    "system calls filtered": int(status["Seccomp"]) == 2,
    "writing": {each: refusal(each) for each in ("/", "/opt/digits", "/models", "/tmp")},
    "token": os.path.exists("/var/run/secrets/kubernetes.io"),
}))
"""


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace with everything, until all tests are over; what is there is told if one fails."""
    there = kubectl.cluster("digits-test")
    failed, created = request.session.testsfailed, False
    delete(there)
    try:
        create(there)
        created = True
        yield there
    finally:
        if not created or request.session.testsfailed > failed:
            capture = request.config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():
                print(there.diagnosis())
        delete(there)


@pytest.fixture(scope="module")
def metrics(cluster: Cluster) -> Prometheus:
    """The cluster's, once it has found both replicas."""
    metrics = prometheus(cluster)
    until("Prometheus scrapes all replicas", lambda: metrics.value("sum(up)") == REPLICAS)
    return metrics


@pytest.fixture(scope="module")
def tallies(cluster: Cluster) -> list[Json]:
    """What clients counted that asked each replica in turn, without labels and with, and that asked
    the one address."""
    many = ("--clients", str(CLIENTS), "--rate", "100", "--requests", str(REQUESTS))
    turns = ("--load-balancing", "round_robin")
    loads = {
        "unlabelled": (EACH_ADDRESS, *many, *turns, "--no-feedback"),
        "labelled": (EACH_ADDRESS, *many, *turns, "--wrong-every", "10"),
        "one-address": (ONE_ADDRESS, *many, "--wrong-every", "10"),
    }
    for name, (address, *options) in loads.items():
        start_load(cluster, name, address, MODEL, *options)
    return [tally(cluster, name) for name in loads]


def test_the_training_job_fills_the_volume_and_two_replicas_serve_what_it_published(
    cluster: Cluster, metrics: Prometheus
) -> None:
    served = {
        (sample.labels["pod"], sample.labels["model"], sample.labels["version"]): sample.value
        for sample in metrics.query("inference_model_ready")
    }
    pods = serving_pods(cluster)
    assert len(pods) == REPLICAS
    assert served == {(pod, model, VERSION): 1.0 for pod in pods for model in MODELS}


def test_the_native_lane_answers_in_each_replica(cluster: Cluster) -> None:
    for pod in serving_pods(cluster):
        assert LANE_ANSWERS in cluster.run("logs", pod)


def test_a_replica_is_unprivileged_writes_to_tmp_only_and_has_no_token(cluster: Cluster) -> None:
    for pod in serving_pods(cluster):
        seen = cluster.run("exec", "--stdin", pod, "--", "python", "-", stdin=CONFINEMENT)
        assert json.loads(seen) == {
            "users": ["10001"] * 4,
            "groups": ["10001"] * 4,
            "capabilities": 0,
            "no new privileges": 1,
            "system calls filtered": True,
            "writing": {"/": "EROFS", "/opt/digits": "EROFS", "/models": "EROFS", "/tmp": None},
            "token": False,
        }


def test_clients_in_other_pods_reach_both_replicas_by_name(
    cluster: Cluster, metrics: Prometheus, tallies: list[Json]
) -> None:
    total = len(tallies) * REQUESTS
    until("all answers are scraped", lambda: metrics.value(f"sum({ANSWERED})") == total)
    answered = {
        each.labels["pod"]: each.value for each in metrics.query(f"sum by (pod) ({ANSWERED})")
    }
    assert [(each["requests"], each["lost"]) for each in tallies] == [(REQUESTS, 0)] * len(tallies)
    assert set(answered) == set(serving_pods(cluster))
    # Those that ask in turn and send nothing else ask one replica as often as the other.
    assert min(answered.values()) >= REQUESTS * 0.4


def test_prometheus_in_the_cluster_has_the_accuracy_that_clients_counted(
    metrics: Prometheus, tallies: list[Json]
) -> None:
    labelled = tallies[1:]
    right, rows = (sum(each[what] for each in labelled) for what in ("right", "rows"))
    until("all labels are scraped", lambda: metrics.value(f"sum({LABELLED})") == rows)
    assert [each["feedback_refused"] for each in labelled] == [0, 0]
    assert metrics.value(f"sum({RIGHT})") == right
    assert metrics.value(f"sum({RIGHT}) / sum({LABELLED})") == right / rows
    rules = [rule for group in metrics.rule_groups() for rule in group.rules]
    assert [rule for rule in rules if rule.error] == []


def test_what_one_replica_predicted_is_labelled_at_the_other(cluster: Cluster) -> None:
    addresses = [f"{pod['status']['podIP']}:8001" for pod in serving_pods(cluster).values()]
    printed = run_script(cluster, "label_elsewhere.py", *addresses, MODEL, holdout(MODEL))
    assert printed.split() == ["counted"] * 8


def test_bad_versions_are_refused_while_the_old_one_serves(
    cluster: Cluster, metrics: Prometheus
) -> None:
    before = _states(cluster)
    with _under_load(cluster, metrics, "bad-versions") as tallies:
        run_script(cluster, "spoil_version.py", f"/models/{MODEL}/{VERSION}", writes=True)
        until("both are refused by all", lambda: len(metrics.query(REFUSED)) == 2 * REPLICAS)
        refused = {
            (each.labels["pod"], each.labels["version"], each.labels["reason"]): each.value
            for each in metrics.query(REFUSED)
        }
    for _ in range(2):
        run(cluster, "rollback", *ROLL_BACK, writes=True)
    reasons = (("2", "checksum"), ("3", "holdout"))
    assert refused == {(pod, *reason): 1.0 for pod in before for reason in reasons}
    assert _states(cluster) == before
    _assert_nothing_lost(tallies)


def test_a_rolling_restart_under_load_loses_no_request(
    cluster: Cluster, metrics: Prometheus
) -> None:
    before = serving_pods(cluster)
    with _under_load(cluster, metrics, "rolling-restart") as tallies:
        cluster.run("rollout", "restart", "deployment/digits-serving")
        until("all replicas are new", lambda: ready_replicas(cluster) == REPLICAS, 120)
        until("the old ones have ended", lambda: have_ended(cluster, before), 90)
        after = set(serving_pods(cluster))
        until("all new replicas answer", lambda: _answering(metrics) == after, FOUND)
    assert not set(before) & after
    _assert_nothing_lost(tallies)
    # Of a connection, what is on its way while its replica is told to end is refused; nothing else.
    assert max(each["unanswered_tries"] for each in tallies) <= CLIENTS * REPLICAS


@pytest.mark.parametrize("how", [(), ("--now",)], ids=["and it drains", "and it has a second"])
def test_the_deletion_of_a_pod_under_load_loses_no_request(
    cluster: Cluster, metrics: Prometheus, how: tuple[str, ...]
) -> None:
    deleted, kept = serving_pods(cluster)
    with _under_load(cluster, metrics, f"deletion{''.join(how)}") as tallies:
        cluster.run("delete", "pod", deleted, *how, "--wait=false")
        until("it has ended", lambda: have_ended(cluster, [deleted]), 90)
        until("there are two again", lambda: ready_replicas(cluster) == REPLICAS, 120)
        after = set(serving_pods(cluster))
        until("the new one answers, too", lambda: _answering(metrics) == after, FOUND)
    assert kept in after
    assert deleted not in after
    _assert_nothing_lost(tallies)


@contextmanager
def _under_load(cluster: Cluster, metrics: Prometheus, name: str) -> Iterator[list[Json]]:
    """Clients that try again, on the one address and on each in turn; their tallies when left."""
    options = ("--clients", str(CLIENTS), "--rate", "20", "--retry", "60", "--wrong-every", "10")
    balanced = (*options, "--load-balancing", "round_robin")
    loads = {f"{name}-one": (ONE_ADDRESS, options), f"{name}-each": (EACH_ADDRESS, balanced)}
    before = metrics.value(f"sum({ANSWERED})")
    for load, (address, asked) in loads.items():
        start_load(cluster, load, address, MODEL, *asked)
    cluster.wait("condition=Ready", *(f"pod/{load}" for load in loads), timeout=60)
    until("clients are answered", lambda: metrics.value(f"sum({ANSWERED})") > before + 20)
    tallies: list[Json] = []
    yield tallies
    for load in loads:
        stop_load(cluster, load)
        tallies.append(tally(cluster, load))


def _assert_nothing_lost(tallies: list[Json]) -> None:
    for each in tallies:
        assert (each["lost"], each["feedback_refused"]) == (0, 0)
        assert each["right"] + each["wrong"] == each["rows"]
        assert each["versions"] == {VERSION: each["requests"]}


def _answering(metrics: Prometheus) -> set[str]:
    """The replicas that have answered anything."""
    return {each.labels["pod"] for each in metrics.query(f"sum by (pod) ({ANSWERED}) > 0")}


def _states(cluster: Cluster) -> dict[str, tuple[str, str, int]]:
    """Of each replica: whether it is ready, since when, and how often it was restarted."""
    states = {}
    for name, pod in serving_pods(cluster).items():
        (ready,) = (each for each in pod["status"]["conditions"] if each["type"] == "Ready")
        (container,) = pod["status"]["containerStatuses"]
        states[name] = (ready["status"], ready["lastTransitionTime"], container["restartCount"])
    return states
