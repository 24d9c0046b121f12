"""Pods of the digits-client image, which end by themselves: a load with its tally, or a script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from kubectl import Cluster, ClusterError, Json, until

HERE = Path(__file__).parent
SECONDS = 120.0  # for a pod to start, do its work, and end


def holdout(model: str) -> str:
    """The images of the version that the training Job publishes, in a pod."""
    return f"/models/{model}/1/holdout.npz"


def run(cluster: Cluster, name: str, *arguments: str, writes: bool = False) -> str:
    """What `python` prints there with these arguments; with `writes` it may change the volume.
    ClusterError where it fails."""
    _start(cluster, name, arguments, writes)
    phase, printed = _ended(cluster, name)
    if phase != "Succeeded":
        raise ClusterError(f"pod {name}: {printed}")
    return printed


def run_script(cluster: Cluster, script: str, *arguments: str, writes: bool = False) -> str:
    """The same with a script of this directory."""
    name, source = Path(script).stem.replace("_", "-"), (HERE / script).read_text()
    return run(cluster, name, "-c", source, *arguments, writes=writes)


def start_load(cluster: Cluster, name: str, address: str, model: str, *options: str) -> None:
    """`python -m deploy.load`."""
    asked = ("--address", address, "--model", model, "--holdout", holdout(model))
    _start(cluster, name, ("-m", "deploy.load", *asked, *options), writes=False)


def stop_load(cluster: Cluster, name: str) -> None:
    """By a signal, as the pod has to be there when it is asked what it counted."""
    cluster.run("exec", name, "--", "sh", "-c", "kill -TERM 1")


def tally(cluster: Cluster, name: str) -> Json:
    """What a load counted, once it has ended, well or not."""
    _, printed = _ended(cluster, name)
    try:
        counted: Json = json.loads(printed)
    except json.JSONDecodeError:
        raise ClusterError(f"pod {name}: {printed}") from None
    return counted


def _start(cluster: Cluster, name: str, arguments: Sequence[str], writes: bool) -> None:
    manifest = yaml.safe_load((HERE / "kubernetes" / "client.yaml").read_text())
    manifest["metadata"]["name"] = name
    container = manifest["spec"]["containers"][0]
    container["image"] = _image(cluster)
    container["command"] = ["python", *arguments]
    container["volumeMounts"][0]["readOnly"] = not writes
    cluster.create(manifest)


def _ended(cluster: Cluster, name: str) -> tuple[str, str]:
    """How a pod ended, and what it printed; it is deleted."""

    def phase() -> str:
        return cluster.run("get", "pod", name, "--output=jsonpath={.status.phase}")

    until(f"pod {name} has ended", lambda: phase() in ("Succeeded", "Failed"), SECONDS)
    ended, printed = phase(), cluster.run("logs", name)
    cluster.run("delete", "pod", name)
    return ended, printed


def _image(cluster: Cluster) -> str:
    """Of the same registry and version as the server's."""
    deployment = cluster.get("deployment", "digits-serving")
    image: str = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    return image.replace("digits-serving", "digits-client")
