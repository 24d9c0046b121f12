"""The namespace in which deploy/kubernetes is tried: made, filled, looked at, deleted."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

from kubectl import Cluster, ClusterError, Json, until

from deploy.prometheus_server import CONFIGURATION, Prometheus

OVERLAYS = Path(__file__).parent / "kubernetes"
REPLICAS = 2
SERVING = "app.kubernetes.io/name=digits,app.kubernetes.io/component=serving"
# The oldest minor version of Kubernetes that has all that base asks for; up to 24, the older kinds
# that `translated` takes are still there.
CURRENT = 27
# Seconds; on an idle machine, training takes 20 and a replica 8.
STARTED = 240.0
DELETED = 120.0


def create(cluster: Cluster) -> None:
    """What a user does, too: the namespace, the key, Prometheus's files, and then all the rest."""
    overlay = "small" if cluster.minor_version() >= CURRENT else "translated"
    cluster.run("create", "namespace", cluster.namespace)
    key = f"--from-literal=feedback-key={secrets.token_hex(32)}"
    cluster.run("create", "secret", "generic", "digits-feedback-key", key)
    rules = [CONFIGURATION / name for name in ("recording_rules.yml", "alerts.yml")]
    files = [f"--from-file={path}" for path in (OVERLAYS / "small" / "prometheus.yml", *rules)]
    cluster.run("create", "configmap", "prometheus", *files)
    cluster.run("apply", f"--kustomize={OVERLAYS / overlay}")
    until("the training Job is complete", lambda: _completions(cluster) == 1, STARTED)
    until(f"{REPLICAS} replicas are ready", lambda: ready_replicas(cluster) == REPLICAS, STARTED)
    cluster.wait("condition=Available", "deployment/prometheus", timeout=60)


def delete(cluster: Cluster) -> None:
    """Delete it, where it is there, and wait until it is not."""
    makers = "deployments,replicasets,jobs"
    # Pods first, and what would make new ones: a namespace's end would give each time to drain.
    cluster.run("delete", makers, "--all", "--cascade=orphan")
    cluster.run("delete", "pods", "--all", "--now", "--wait=false")
    until("all pods have ended", lambda: have_ended(cluster, _pods(cluster)), DELETED)
    cluster.run("delete", "pods", "--all", "--grace-period=0", "--force")  # what is left of them
    cluster.run("delete", "namespace", cluster.namespace, "--ignore-not-found", timeout=DELETED)


def have_ended(cluster: Cluster, names: Iterable[str]) -> bool:
    """Whether nothing of these pods runs; a cluster may list them for a minute longer."""
    pods = _pods(cluster)
    there = [pods[name]["status"] for name in names if name in pods]
    containers = [each for status in there for each in status.get("containerStatuses", [])]
    return not any("running" in each["state"] for each in containers)


def ready_replicas(cluster: Cluster) -> int:
    """Of the server, of its newest kind; 0 until the cluster knows which that is."""
    deployment = cluster.get("deployment", "digits-serving")
    status = deployment["status"]
    if status.get("observedGeneration") != deployment["metadata"]["generation"]:
        return 0
    return int(min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0)))


def serving_pods(cluster: Cluster) -> dict[str, Json]:
    """The server's, by name, but for those that are ending."""
    return {pod["metadata"]["name"]: pod for pod in cluster.pods(SERVING)}


def prometheus(cluster: Cluster) -> Prometheus:
    """The one in there, reached through the cluster's API."""
    service = f"/api/v1/namespaces/{cluster.namespace}/services/prometheus:9090/proxy"
    return Prometheus(service, cluster.raw)


def _completions(cluster: Cluster) -> int:
    status = cluster.get("job", "digits-training")["status"]
    if status.get("failed"):
        raise ClusterError("the training Job failed")
    return int(status.get("succeeded", 0))


def _pods(cluster: Cluster) -> dict[str, Json]:
    return {pod["metadata"]["name"]: pod for pod in cluster.get("pods")["items"]}
