"""deploy/kubernetes: what the manifests say agrees with the server, and with each other.

`make deploy-lint` holds them against Kubernetes' own schemas.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from deploy.kubernetes import __main__ as written
from serving.config import ServerConfig
from serving.families import Exported
from serving.options import parse
from serving.server import LIVENESS, READINESS, STARTUP
from serving.workers import LAST_CHANCE

KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
OVERLAYS = sorted(path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
MANIFESTS = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml")

Json = dict[str, Any]


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def one(path: Path) -> Json:
    (document,) = documents(path)
    assert isinstance(document, dict)
    return document


def pod_spec(file: str) -> Json:
    spec = one(BASE / file)["spec"]
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    found: Json = spec["template"]["spec"]
    return found


def serving() -> Json:
    (container,) = pod_spec("deployment.yaml")["containers"]
    found: Json = container
    return found


def environment(kustomization: Path) -> dict[str, str]:
    """What the ConfigMap digits-serving holds there."""
    generators = one(kustomization / "kustomization.yaml").get("configMapGenerator", [])
    (generator,) = [each for each in generators if each["name"] == "digits-serving"] or [{}]
    base = kustomization != BASE and generator.get("behavior") != "replace"
    lines = list(generator.get("literals", []))
    for name in generator.get("envs", []):
        text = (kustomization / name).read_text(encoding="utf-8")
        lines += [line for line in text.splitlines() if line and not line.startswith("#")]
    return (environment(BASE) if base else {}) | dict(line.split("=", 1) for line in lines)


def containers(node: object) -> Iterator[Json]:
    """Everything within a manifest that is a container, and not a patch of one."""
    if isinstance(node, dict):
        if "image" in node and "name" in node:
            yield node
        for value in node.values():
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


@pytest.mark.parametrize("directory", [BASE, *OVERLAYS], ids=lambda path: path.name)
def test_a_server_starts_with_the_environment_that_it_is_given(directory: Path) -> None:
    given = environment(directory)
    options = {f"DIGITS_{field.name.upper()}" for field in fields(ServerConfig)}
    assert set(given) - options == set()
    config = parse([], given)
    assert config.drain_timeout == 30
    assert config.replicas == 1 or config.feedback_key_file is not None


def test_the_feedback_key_is_where_the_secret_is_mounted() -> None:
    path = Path(environment(BASE)["DIGITS_FEEDBACK_KEY_FILE"])
    mounts = {mount["mountPath"]: mount["name"] for mount in serving()["volumeMounts"]}
    assert mounts[str(path.parent)] == "feedback-key"
    assert path.name == "feedback-key"  # the key in the Secret, as deployment.yaml says it is made
    assert f"--from-literal={path.name}=" in (BASE / "deployment.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("overlay", ["base", "kserve"])
def test_a_pod_is_killed_only_after_the_pause_and_the_drain(overlay: str) -> None:
    if overlay == "base":
        grace = pod_spec("deployment.yaml")["terminationGracePeriodSeconds"]
        container = serving()
    else:
        kserve = KUBERNETES / "overlays" / "kserve"
        grace = one(kserve / "inference-service.yaml")["spec"]["predictor"][
            "terminationGracePeriodSeconds"
        ]
        (container,) = one(kserve / "serving-runtime.yaml")["spec"]["containers"]
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    drain = parse([], environment(BASE)).drain_timeout
    assert grace >= float(pause) + drain + LAST_CHANCE


def test_each_probe_asks_for_its_own_health_service() -> None:
    asked = {
        kind: serving()[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")
    }
    assert asked == {
        "startup": {"port": ServerConfig().grpc_port, "service": STARTUP},
        "readiness": {"port": ServerConfig().grpc_port, "service": READINESS[1]},
        "liveness": {"port": ServerConfig().grpc_port, "service": LIVENESS},
    }


def test_services_and_policies_lead_to_the_servers_ports() -> None:
    config = ServerConfig()
    ports = {port["name"]: port["containerPort"] for port in serving()["ports"]}
    assert ports == {
        "http": config.http_port,
        "grpc": config.grpc_port,
        "metrics": config.metrics_port,
    }
    cluster_ip, headless = documents(BASE / "services.yaml")
    assert {port["name"]: port["port"] for port in headless["spec"]["ports"]} == ports
    of_clients = {port["name"]: port["port"] for port in cluster_ip["spec"]["ports"]}
    assert of_clients == {"http": config.http_port, "grpc": config.grpc_port}
    assert headless["spec"]["clusterIP"] == "None"
    policies = {
        each["metadata"]["name"]: each["spec"] for each in documents(BASE / "network-policies.yaml")
    }
    ingress = policies["digits-serving"]["ingress"]
    allowed = [[port["port"] for port in rule["ports"]] for rule in ingress]
    assert allowed == [[config.http_port, config.grpc_port], [config.metrics_port]]
    to_servers, _ = policies["digits-clients"]["egress"]
    assert [port["port"] for port in to_servers["ports"]] == allowed[0]


def test_whatever_selects_the_servers_pods_selects_them() -> None:
    labels = one(BASE / "deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    spread = pod_spec("deployment.yaml")["topologySpreadConstraints"]
    selectors = [
        one(BASE / "deployment.yaml")["spec"]["selector"]["matchLabels"],
        one(BASE / "pod-disruption-budget.yaml")["spec"]["selector"]["matchLabels"],
        one(KUBERNETES / "components/monitoring/pod-monitor.yaml")["spec"]["selector"][
            "matchLabels"
        ],
        *(service["spec"]["selector"] for service in documents(BASE / "services.yaml")),
        *(each["labelSelector"]["matchLabels"] for each in spread),
    ]
    assert selectors == [labels] * len(selectors)


def test_no_autoscaler_starts_more_replicas_than_the_server_is_told_of() -> None:
    told = int(environment(BASE)["DIGITS_REPLICAS"])
    overlays = KUBERNETES / "overlays"
    most = [
        one(BASE / "horizontal-pod-autoscaler.yaml")["spec"]["maxReplicas"],
        one(overlays / "keda/scaled-object.yaml")["spec"]["maxReplicaCount"],
        one(overlays / "kserve/inference-service.yaml")["spec"]["predictor"]["maxReplicas"],
    ]
    assert most == [told, told, told]


def test_all_autoscalers_look_at_a_metric_that_the_server_exports() -> None:
    metric = Exported.pending.name
    text = (BASE / "horizontal-pod-autoscaler.yaml").read_text(encoding="utf-8")
    assert metric == "inference_pending_requests"
    assert f"name: {metric}\n" in text
    (rule,) = one(KUBERNETES / "components/monitoring/prometheus-adapter-values.yaml")["rules"][
        "custom"
    ]
    assert rule["name"]["as"] == metric
    assert rule["seriesQuery"].startswith(metric + "{")
    trigger, _ = one(KUBERNETES / "overlays/keda/scaled-object.yaml")["spec"]["triggers"]
    assert f"({metric}{{" in trigger["metadata"]["query"]


def test_the_prometheus_rule_is_what_deploy_prometheus_says() -> None:
    assert written.WRITTEN.read_text(encoding="utf-8") == written.text()
    (rule,) = documents(written.WRITTEN)
    groups = [
        group
        for name in ("recording_rules.yml", "alerts.yml")
        for group in one(ROOT / "deploy" / "prometheus" / name)["groups"]
    ]
    assert rule["spec"]["groups"] == groups


def test_the_scraped_job_is_the_one_that_rules_and_dashboards_look_for() -> None:
    monitor = one(KUBERNETES / "components/monitoring/pod-monitor.yaml")["spec"]
    template = one(BASE / "deployment.yaml")["spec"]["template"]
    scrape = one(ROOT / "deploy" / "prometheus" / "prometheus.yml")["scrape_configs"]
    (job,) = [each["job_name"] for each in scrape]
    assert template["metadata"]["labels"][monitor["jobLabel"]] == job


def test_the_server_reads_models_and_training_writes_them() -> None:
    mounts = {mount["name"]: mount for mount in serving()["volumeMounts"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    (training,) = pod_spec("training-job.yaml")["containers"]
    assert {"name": "models", "mountPath": "/models"} in training["volumeMounts"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for file in ("deployment.yaml", "training-job.yaml", "retraining-cronjob.yaml")
        for volume in pod_spec(file)["volumes"]
        if volume["name"] == "models"
    ]
    assert claims == [one(BASE / "models-pvc.yaml")["metadata"]["name"]] * 3


def test_the_job_and_the_cron_job_train_alike() -> None:
    once, again = pod_spec("training-job.yaml"), pod_spec("retraining-cronjob.yaml")
    assert again["initContainers"] == once["containers"]
    same = ("securityContext", "volumes", "restartPolicy", "serviceAccountName")
    assert [again[key] for key in same] == [once[key] for key in same]


def test_kserve_runs_the_container_of_the_base() -> None:
    (container,) = one(KUBERNETES / "overlays/kserve/serving-runtime.yaml")["spec"]["containers"]
    same = ("image", "envFrom", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
    assert [container[key] for key in (*same, "resources")] == [
        serving()[key] for key in (*same, "resources")
    ]
    ports = [port["containerPort"] for port in container["ports"]]
    assert ports == [ServerConfig().grpc_port, ServerConfig().http_port]
    predictor = one(KUBERNETES / "overlays/kserve/inference-service.yaml")["spec"]["predictor"]
    assert predictor["securityContext"] == pod_spec("deployment.yaml")["securityContext"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_every_container_is_hardened_and_bounded(file: Path) -> None:
    for container in containers(documents(file)):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound])


@pytest.mark.parametrize(
    "file", ["deployment.yaml", "training-job.yaml", "retraining-cronjob.yaml"]
)
def test_every_pod_is_an_unprivileged_user_without_a_token(file: str) -> None:
    spec = pod_spec(file)
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == one(BASE / "service-account.yaml")["metadata"]["name"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_images_are_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    tags = {
        (path.parent.name, image["name"]): image["newTag"]
        for path in KUBERNETES.rglob("kustomization.yaml")
        for image in one(path).get("images", [])
        if image["name"].startswith("digits-")
    }
    assert tags == {
        ("base", "digits-serving"): version,
        ("base", "digits-training"): version,
        ("gpu", "digits-serving"): f"{version}-gpu",
        ("kserve", "digits-serving"): version,
        ("distributed-training", "digits-training"): version,
    }
    readme = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"digits-(?:[$]image|training|serving):([0-9][\w.]*)", readme)) == {
        version
    }
