"""Dependency rules that import-linter cannot state, because they are about root modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported(module: str) -> set[str]:
    """Top-level names that a module of the root imports, anywhere in it."""
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").split(".")[0])
    return names


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("model_repository", {"repository_commands"}),  # when run as a program only
        ("repository_upkeep", {"model_repository"}),
        ("repository_commands", {"model_repository", "repository_upkeep"}),
        ("digit_image", {"numpy", "PIL"}),
    ],
)
def test_a_root_module_imports_only_what_both_sides_can_afford(
    module: str, allowed: set[str]
) -> None:
    assert imported(module) - sys.stdlib_module_names == allowed


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("model_repository", {"numpy", "repository_commands", "repository_upkeep"}),
        ("serving.server", {"torch", "onnx", "sklearn", "training"}),
        ("serving.main", {"opentelemetry", "requests"}),  # an extra, for who asks for spans
        ("serving.client", {"torch", "onnxruntime", "prometheus_client", "serving.server"}),
        ("training.__main__", {"grpc", "prometheus_client", "serving"}),
    ],
)
def test_importing_one_side_loads_nothing_of_the_other(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert absent & set(result.stdout.split()) == set()


LANE = sorted(
    path
    for folder in ("serving/lane/core", "serving/lane/binding", "tests/lane", "benchmarks/serving")
    for path in (ROOT / folder).glob("*.*")
    if path.suffix in (".cpp", ".h")
)


@pytest.mark.parametrize("path", LANE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_the_lane_says_what_it_is_for_in_lines_of_at_most_100_columns(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("// ")
    assert [line for line in lines if len(line) > 100] == []
