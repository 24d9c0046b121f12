"""Dependency rules that import-linter cannot state, because they are about root modules."""

from __future__ import annotations

import ast
import re
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
        ("digit_image", {"numpy", "PIL", "image_file"}),
        ("image_file", {"numpy", "PIL"}),
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


# Server tests, and the transport that they run over

STARTS = {"serve", "running_server", "server_process"}
# Those for which one transport is enough.
OVER_ONE = {
    "test_gpu.py": "each test names its transport, among other options",
    "test_gpu_metrics.py": "of a page that no transport serves",
    "test_import.py": "of models",
    "test_serving_benchmark.py": "of a client, by servers of its own beside one of ours",
    "test_training.py": "of models, which take long to train",
}


def leaves_its_transport_open(tree: ast.Module) -> bool:
    """Whether DIGITS_TRANSPORT decides: a test asks for the server that all share, or starts one
    without a word on that."""
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    if any(isinstance(node, ast.Constant) and node.value == "--transport" for node in nodes):
        own.add("server_process")
    return any(starts(node, own) for node in nodes)


def starts(node: ast.AST, own: set[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        asks = any(argument.arg == "running" for argument in node.args.args)
        fixture = any("fixture" in ast.unparse(each) for each in node.decorator_list)
        return asks and (node.name.startswith("test_") or fixture) and "running" not in own
    if isinstance(node, ast.List):  # a command line
        words = tuple(each.value for each in node.elts if isinstance(each, ast.Constant))
        return words[:2] == ("-m", "serving") and words[2:3] != ("doctor",)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        said = any(keyword.arg == "transport" for keyword in node.keywords)
        return node.func.id in STARTS - own and not said
    return False


def test_every_test_of_servers_runs_over_the_lane_as_well() -> None:
    """It takes each transport in turn, or names one, or `make lane-python` runs it again."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^LANE_TESTS \?= \$\(patsubst %,tests/test_%\.py,([^)]+)\)", makefile, re.M)
    assert listed
    again = {f"test_{name}.py" for name in listed[1].replace("\\", " ").split()}
    trees = {
        path.name: ast.parse(path.read_text(encoding="utf-8"))
        for path in (ROOT / "tests").glob("test_*.py")
    }
    leave_it = {name for name, tree in trees.items() if leaves_its_transport_open(tree)}
    assert leave_it - again == set(OVER_ONE)
    assert again <= set(trees)
