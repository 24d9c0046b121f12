"""The OpenAPI document is one, and a server of its own process is as it says: by schemathesis.

That runs in an environment of its own (`make web-test`), and is told what to ask by
schemathesis.toml.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Digits, publish_classifier, publish_times, server_process

from serving.http.openapi import document

BIN = ROOT / ".venv-web" / "schemathesis" / "bin"
CONFIG = Path(__file__).parent / "schemathesis.toml"
# It takes half a minute where the machine has nothing else to do. Less than CI's stage may take, so
# that what it said so far is told.
SECONDS = 150


@pytest.fixture(scope="module")
def http_url(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Iterator[str]:
    """A server that an administrator may change, of models that schemathesis.toml names."""
    repository = tmp_path_factory.mktemp("models")
    publish_classifier(repository, digits)
    for name in ("times", "spare"):
        publish_times(repository, name)
    arguments = ("--model-repository", str(repository), "--intra-op-threads", "1")
    changing = ("--allow-admin", "--model-control-mode", "explicit", "--load-model", "*")
    with server_process(*arguments, *changing) as process:
        url = process.wait_for(r"HTTP on (\S+)")[1]
        process.wait_for("ready in")
        yield url


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of schemathesis's environment, whose modules are not ours."""
    path = BIN / command
    assert path.exists(), f"{path} is missing: run `make web-test`"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [path, *arguments],
        cwd=BIN.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
    )


def test_the_document_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document("1")))
    done = run("openapi-spec-validator", "--schema", "3.1", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: OK\n"), done.stdout + done.stderr


def test_what_is_no_document_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    wrong = document("1")
    del wrong["info"]["title"]
    path.write_text(json.dumps(wrong))
    done = run("openapi-spec-validator", "--schema", "3.1", str(path))
    assert done.returncode == 1
    assert "title" in done.stdout
    assert "is a required" in done.stdout


def test_the_server_is_as_its_document_says(http_url: str) -> None:
    url = f"{http_url}/openapi.json"
    done = run("schemathesis", "--config-file", str(CONFIG), "run", "--no-color", url)
    assert done.returncode == 0, done.stdout + done.stderr
    # All but that of the document, which it has asked for already.
    operations = sum(len(methods) for methods in document("1")["paths"].values()) - 1
    assert re.search(rf"^ +Tested: {operations}$", done.stdout, re.MULTILINE), done.stdout
    cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert cases, done.stdout
    assert int(cases[1]) == int(cases[2]) > 10 * operations
