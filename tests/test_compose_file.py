"""docker-compose.yml and .env.example beside what they repeat; `make compose-test` runs them."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from conftest import ROOT

from serving.config import ServerConfig
from serving.options import parse

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# ${NAME:-default}, or with - alone where it may be empty.
VARIABLES = dict(re.findall(r"(?<!\$)\$\{(\w+):?-([^}]*)\}", TEXT))
OPTIONS = set(COMPOSE["x-options"])
DOCUMENTED = dict(re.findall(r"(?m)^#(\w+)=(.*)$", (ROOT / ".env.example").read_text()))


def filled_in(text: str) -> str:
    """As it is without a .env."""
    return re.sub(r"\$\{(\w+):?-[^}]*\}", lambda match: VARIABLES[match[1]], text)


def test_every_variable_is_documented_with_its_default_and_no_other() -> None:
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT)) == set(VARIABLES)
    assert {name: DOCUMENTED[name] for name in VARIABLES} == VARIABLES
    assert set(DOCUMENTED) == set(VARIABLES) | OPTIONS


def test_the_servers_options_are_documented_with_its_own_defaults() -> None:
    given = {name: DOCUMENTED[name] for name in OPTIONS if DOCUMENTED[name]}
    assert OPTIONS - set(given) == {"DIGITS_OTLP_ENDPOINT"}
    assert parse([], given) == ServerConfig()
    unlike = {name: "1" for name in given} | {"DIGITS_LOG_FORMAT": "json"}
    unlike |= {"DIGITS_PRECISION": "fp32", "DIGITS_VERSION_POLICY": "all"}
    changed = parse([], unlike)
    default = ServerConfig()
    names = (name.removeprefix("DIGITS_").lower() for name in given)
    same = [name for name in names if getattr(changed, name) == getattr(default, name)]
    assert same == ["workers"]  # each of them is read


def test_the_images_that_are_built_have_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert VARIABLES["DIGITS_VERSION"] == project["version"]
    for service in SERVICES.values():
        if build := service.get("build"):
            assert build["args"]["VERSION"] == "${DIGITS_VERSION:-0.1.0}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["CHOWN"] if name == "secrets" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "logging"} <= set(service)
    assert service["restart"] == ("no" if name in ("train", "secrets") else "unless-stopped")
    assert all("size=" in each for each in service["tmpfs"])
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_published_on_loopback_unless_told_otherwise(name: str) -> None:
    published = [filled_in(each).split(":") for each in SERVICES[name].get("ports", [])]
    assert {address for address, _, _ in published} <= {"127.0.0.1"}


def test_no_two_services_publish_the_same_port() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    ports = {filled_in(each).split(":")[1] for each in published}
    assert len(ports) == len(published) == 10


def test_a_server_is_given_longer_to_end_than_it_drains() -> None:
    grace = [SERVICES[name]["stop_grace_period"] for name in ("serving", "serving-gpu")]
    assert grace == ["40s", "40s"]
    assert ServerConfig().drain_timeout < 40


def test_what_is_mounted_from_here_is_there() -> None:
    """Docker makes a directory of what is not."""
    volumes = [filled_in(v) for service in SERVICES.values() for v in service.get("volumes", [])]
    here = {volume.split(":")[0] for volume in volumes if volume.startswith(".")}
    assert {source for source in here if not (ROOT / source).exists()} == set()
    assert here == {
        "./deploy/compose/targets.json",
        "./deploy/grafana/dashboards",
        "./deploy/grafana/provisioning",
        "./deploy/prometheus",
    }


def test_prometheus_scrapes_the_servers_by_their_names() -> None:
    files = (ROOT / "deploy/compose").iterdir()
    assert {path.name: json.loads(path.read_text()) for path in files} == {
        "targets.json": [{"targets": ["serving:8002"]}],
        "targets-gpu.json": [{"targets": ["serving-gpu:8002"]}],
    }


def test_grafana_is_told_what_its_provisioning_asks_for() -> None:
    provisioning = (ROOT / "deploy/grafana/provisioning").glob("*/*.yml")
    asked = {name for path in provisioning for name in re.findall(r"\$\{(\w+)\}", path.read_text())}
    environment = SERVICES["grafana"]["environment"]
    assert asked == {"DIGITS_DASHBOARDS", "PROMETHEUS_URL"}
    assert environment["PROMETHEUS_URL"] == "http://prometheus:9090"
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert environment["DIGITS_DASHBOARDS"] in mounted
    assert (ROOT / "deploy/grafana/dashboards/serving.json").exists()


def test_no_secret_is_in_an_environment() -> None:
    environments = [service.get("environment") or {} for service in SERVICES.values()]
    names = {name for each in environments for name in each}
    secret = {name for name in names if re.search("PASSWORD|SECRET|KEY|TOKEN", name)}
    assert secret == {"GF_SECURITY_ADMIN_PASSWORD__FILE"}
