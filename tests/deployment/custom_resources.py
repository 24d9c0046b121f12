"""Holds custom resources against models that their projects generated from the definitions.

Runs in the environment of requirements-lint.txt: `python custom_resources.py FILE...` names every
fault, and every kind that there is no model of.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

Resource = dict[str, Any]
PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": (int, float),
}


def main(files: list[str]) -> int:
    """0: all are as their models have them; 1: not all."""
    faults = 0
    for file in files:
        for resource in yaml.safe_load_all(Path(file).read_text(encoding="utf-8")):
            for fault in _faults(resource):
                print(f"{file}: {resource['kind']}/{resource['metadata']['name']}: {fault}")
                faults += 1
    return 1 if faults else 0


def _faults(resource: Resource) -> Iterator[str]:
    group = resource["apiVersion"].partition("/")[0]
    if group.endswith(".k8s.io") or "." not in group:  # Kubernetes' own
        return iter(())
    check = CHECKS.get(f"{resource['apiVersion']} {resource['kind']}")
    return check(resource) if check else iter((f"no model of {resource['apiVersion']}",))


def _pydantic(module: str) -> Callable[[Resource], Iterator[str]]:
    """By cloudcoil's models, which ignore what they do not know: what comes out again counts."""

    def check(resource: Resource) -> Iterator[str]:
        model = getattr(importlib.import_module(module), resource["kind"])
        try:
            known = model.model_validate(resource)
        except ValueError as error:
            yield str(error)
            return
        dumped = known.model_dump(by_alias=True, exclude_unset=True, mode="json")
        yield from _lost(resource, dumped, "")

    return check


def _lost(given: object, kept: object, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from _lost(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif given != kept:
        yield f"{path} is {given!r}, which is read as {kept!r}"


def _generated(package: str, model: str) -> Callable[[Resource], Iterator[str]]:
    """By an SDK of OpenAPI Generator's, whose models know their fields' types."""

    def check(resource: Resource) -> Iterator[str]:
        yield from _typed(resource, model, _models(package), "")

    return check


def _models(package: str) -> ModuleType:
    """package.models without package itself, which imports a server's worth of dependencies."""
    if package not in sys.modules:
        found = importlib.util.find_spec(package)
        locations = found.submodule_search_locations if found else None
        if locations is None:
            raise SystemExit(f"{package} is not installed")
        empty = ModuleType(package)
        empty.__path__ = list(locations)
        sys.modules[package] = empty
    return importlib.import_module(f"{package}.models")


def _typed(value: Any, kind: str, models: ModuleType, path: str) -> Iterator[str]:
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        for index, item in enumerate(_require(value, list)):
            yield from _typed(item, match[1], models, f"{path}[{index}]")
    elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for key, item in _require(value, dict).items():
            yield from _typed(item, match[1], models, f"{path}.{key}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{path} is {value!r}, not {kind}"
    elif kind not in ("object", "datetime"):
        yield from _object(value, kind, models, path)


def _object(value: Any, kind: str, models: ModuleType, path: str) -> Iterator[str]:
    # Of Kubernetes' own types, some are named with their package there: K8sIoApiAppsV1Deployment.
    short = re.sub(r"^K8sIoApi[A-Z][a-z]+(?=V\d)", "", kind)
    model = getattr(models, kind, None) or getattr(
        importlib.import_module("kubernetes.client"), short
    )
    fields = {name: field for field, name in model.attribute_map.items()}
    for name, item in _require(value, dict).items():
        if name in fields:
            yield from _typed(item, model.openapi_types[fields[name]], models, f"{path}.{name}")
        else:
            yield f"{path}.{name} is unknown"
    try:
        model(**{fields[name]: item for name, item in value.items() if name in fields})
    except ValueError as error:  # what is required, and is not there
        yield f"{path}: {error}"


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise SystemExit(f"{value!r} is not a {kind.__name__}")
    return value


CHECKS: dict[str, Callable[[Resource], Iterator[str]]] = {
    "keda.sh/v1alpha1 ScaledObject": _pydantic("cloudcoil.models.keda.v1alpha1"),
    "monitoring.coreos.com/v1 PodMonitor": _pydantic("cloudcoil.models.prometheus_operator.v1"),
    "monitoring.coreos.com/v1 PrometheusRule": _pydantic("cloudcoil.models.prometheus_operator.v1"),
    "serving.kserve.io/v1alpha1 ServingRuntime": _generated("kserve", "V1alpha1ServingRuntime"),
    "serving.kserve.io/v1beta1 InferenceService": _generated("kserve", "V1beta1InferenceService"),
    "kubeflow.org/v1 PyTorchJob": _generated("kubeflow.training", "KubeflowOrgV1PyTorchJob"),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
