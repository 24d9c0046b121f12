"""Dockerfiles, manifests and the compose file, as tools that know their formats see them.

`make deploy-lint` installs the tools; kubectl must be on the PATH.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

TOOLS = ROOT / ".venv-deploy" / "bin"
KUBERNETES = ROOT / "deploy" / "kubernetes"
BUILT = ROOT / "build" / "deploy-lint"
REGISTRY = "registry.example.com"
VERSIONS = ("1.29", "1.37")  # the oldest that is promised, and what was new when this was written
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml"))
DOCKERFILES = sorted(ROOT.glob("deploy/**/*Dockerfile"))
COMPOSE = ROOT / "docker-compose.yml"


def run(*command: str | Path) -> str:
    """What the command says; a fault, with that, where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    if done.returncode:
        pytest.fail(f"{Path(command[0]).name}:\n{done.stdout}", pytrace=False)
    return done.stdout


def build(name: str, directory: Path) -> Path:
    path = BUILT / f"{name}.yaml"
    path.write_text(run("kubectl", "kustomize", directory), encoding="utf-8")
    return path


def build_own(overlay: str, *components: str) -> Path:
    """What a user has: an overlay over one of ours, with components, and images of a registry."""
    name = "-".join(("own", overlay, *components))
    directory = BUILT / name
    directory.mkdir(parents=True, exist_ok=True)
    ours = "../" * len(directory.relative_to(ROOT).parts) + "deploy/kubernetes"
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{ours}/overlays/{overlay}"],
        "components": [f"{ours}/components/{each}" for each in components],
        "images": [
            {"name": image, "newName": f"{REGISTRY}/{image}"}
            for image in ("digits-serving", "digits-training")
        ],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return build(name, directory)


def possible_components(overlay: str) -> list[str]:
    """Those that an overlay neither has already nor cannot have, as it needs the volume."""
    without = {"keda": "monitoring", "kserve": "object-store"}
    without["distributed-training"] = "object-store"
    return [name for name in COMPONENTS if name != without.get(overlay)]


def references(node: object) -> Iterator[tuple[str, str]]:
    """Kind and name of what a resource refers to; of Secrets, none is committed."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("configMapRef", "configMap"):
                yield "ConfigMap", value["name"]
            elif key == "persistentVolumeClaim":
                yield "PersistentVolumeClaim", value["claimName"]
            elif key == "serviceAccountName":
                yield "ServiceAccount", value
            elif key == "storageUri":
                yield "PersistentVolumeClaim", value.removeprefix("pvc://")
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def missing(resources: list[Any]) -> set[tuple[str, str]]:
    there = {(each["kind"], each["metadata"]["name"]) for each in resources}
    return {reference for each in resources for reference in references(each)} - there


@pytest.fixture(scope="module")
def built() -> list[Path]:
    """base, every overlay, and every component on one of them, each as one file."""
    BUILT.mkdir(parents=True, exist_ok=True)
    for old in BUILT.glob("*.yaml"):
        old.unlink()
    overlays = [build(name, KUBERNETES / "overlays" / name) for name in OVERLAYS]
    components = [build_own("cpu", name) for name in COMPONENTS]
    return [build("base", KUBERNETES / "base"), *overlays, *components]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_for_kubernetes(built: list[Path], version: str) -> None:
    validate = [str(TOOLS / "kubernetes-validate"), "--strict", "--no-warn"]
    said = run(*validate, "--kubernetes-version", version, *built)
    assert said.count(" passed for resource ") > 10 * len(built)


def test_every_custom_resource_is_valid_for_its_operator(built: list[Path]) -> None:
    checker = Path(__file__).with_name("custom_resources.py")
    assert run(TOOLS / "python", checker, *built) == ""


def test_what_a_pod_refers_to_is_there(built: list[Path]) -> None:
    """kustomize renames ConfigMaps; what it does not know to name them keeps the old name."""
    for path in built:
        resources = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        assert missing(resources) == set(), path.name
        assert {each["metadata"].get("namespace", "digits") for each in resources} == {"digits"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_of_ones_own_adds_components_and_says_where_images_are(overlay: str) -> None:
    text = build_own(overlay, *possible_components(overlay)).read_text(encoding="utf-8")
    assert missing(list(yaml.safe_load_all(text))) == set()
    images = re.findall(r"image: (.*)digits-", text)
    assert set(images) == {f"{REGISTRY}/"}


def test_checkov_finds_nothing_that_is_not_justified(built: list[Path]) -> None:
    run(
        *(str(TOOLS / "checkov"), "--config-file", ".checkov.yaml", "--skip-download"),
        *("--framework", "kubernetes", "--compact", "--quiet"),
        *[part for path in built for part in ("--file", str(path))],
    )


def test_yaml_is_written_as_agreed() -> None:
    compose = [COMPOSE] if COMPOSE.exists() else []
    run(TOOLS / "yamllint", "--strict", "deploy", "tests/deployment", ".checkov.yaml", *compose)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_in_a_dockerfile(dockerfile: Path) -> None:
    run(TOOLS / "hadolint", dockerfile)


@pytest.mark.parametrize("file", [COMPOSE] if COMPOSE.exists() else [], ids=lambda path: path.name)
def test_the_compose_file_is_valid(file: Path) -> None:
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
