"""What we are built of: pinned, hashed, licensed; and what bandit finds is passed over by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

from deploy.licences import is_allowed

PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.M)
LOCKS = sorted((ROOT / "deploy" / "locks").glob("*.txt"))


def pins(path: Path) -> dict[str, str]:
    return dict(PINNED.findall(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.stem))
def test_what_is_locked_is_hashed_and_of_the_versions_that_are_tested(path: Path) -> None:
    locked = pins(path)
    assert {"grpcio", "numpy", "pillow", "protobuf"} <= locked.keys()
    assert locked.items() <= pins(ROOT / "constraints.txt").items()
    entries = path.read_text(encoding="utf-8").replace("\\\n", "").splitlines()[1:]
    assert len(entries) == len(locked)
    for entry in entries:
        assert re.search(r" --hash=sha256:[0-9a-f]{64}( |$)", entry)


def test_both_the_server_and_its_client_are_locked() -> None:
    assert [path.stem for path in LOCKS] == ["client", "serving"]
    assert "onnxruntime" in pins(LOCKS[1])


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("(MIT OR ISC) AND Apache-2.0", True),
        ("(MIT OR GPL-2.0-only) AND GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only", False),
        ("LicenseRef-Proprietary", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_only_where_each_of_its_parts_is(
    expression: str, allowed: bool
) -> None:
    assert is_allowed(expression) is allowed


def test_each_exception_from_bandit_names_its_rule() -> None:
    found = [
        line
        for folder in ("training", "serving", "benchmarks", "deploy")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"#\s*nosec\b", line)
    ]
    assert found
    assert [line for line in found if not re.search(r"# nosec B\d{3}( #|$)", line)] == []
