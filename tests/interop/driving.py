"""Runs a script with another client's interpreter against a server; what it saw comes as JSON.

`make interop` makes the environments, one per client, because their protobufs differ from ours and
from each other's: none of them is ever imported in our process.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
from conftest import (
    ECHO_TYPES,
    ROOT,
    Digits,
    publish_classifier,
    publish_echo,
    server_process,
)
from numpy.typing import NDArray

ENVIRONMENTS = ROOT / ".venv-interop"
HERE = Path(__file__).parent
SECONDS = 120  # a client's interpreter may start slowly on a busy machine

# How a server says where it answers.
GRPC, HTTP = r"gRPC on (\S+),", r"HTTP on http://(\S+)"

Arrays = dict[str, NDArray[Any]]
# Per datatype, what survives JSON and is at the edge of the type.
ECHOED: dict[str, list[list[Any]]] = {
    "BOOL": [[True, False, True]],
    "INT8": [[-128, 0, 127]],
    "INT16": [[-(2**15), 0, 2**15 - 1]],
    "INT32": [[-(2**31), 0, 2**31 - 1]],
    "INT64": [[-(2**63), 0, 2**63 - 1]],
    "UINT8": [[0, 1, 255]],
    "UINT16": [[0, 1, 2**16 - 1]],
    "UINT32": [[0, 1, 2**32 - 1]],
    "UINT64": [[0, 1, 2**64 - 1]],
    "FP16": [[-65504.0, 0.5, 65504.0]],
    "FP32": [[-3.0, 0.5, 2.0**100]],
    "FP64": [[-0.1, 0.5, 1e300]],
    "BYTES": [["", "drei ③", "seven"]],
}
assert set(ECHOED) == set(ECHO_TYPES)


def drive(
    client: str, address: str, inputs: Mapping[str, object], folder: Path, script: str = ""
) -> Any:
    """What tests/interop/<script>_drive.py saw at the address, given these inputs; that of the
    client's name by default."""
    python = ENVIRONMENTS / client / "bin" / "python"
    assert python.exists(), f"{python} is missing: run `make interop`"
    given = folder / f"{client}.json"
    given.write_text(json.dumps(inputs))
    run = HERE / f"{script or client}_drive.py"
    # Not in our root, where `import serving` would find our stubs.
    done = subprocess.run(
        [python, run, address, given],
        cwd=folder,
        capture_output=True,
        timeout=SECONDS,
        env=_env(),
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@contextmanager
def serving(
    folder: Path, digits: Digits, transport: str, *options: str, says: str = GRPC
) -> Iterator[str]:
    """The address of `python -m serving` over `classifier`, `spare`, `echo` and `echo_fixed`."""
    repository = folder / "models"
    for name in ("classifier", "spare"):
        publish_classifier(repository, digits, name)
    publish_echo(repository, "echo", (-1, 3))
    publish_echo(repository, "echo_fixed", (1, 3))
    arguments = ["--model-repository", str(repository), "--intra-op-threads", "1", *options]
    with server_process(*arguments, "--transport", transport) as process:
        yield process.wait_for(says)[1]


def run_model(folder: Path, name: str, inputs: Arrays) -> Arrays:
    """ONNX Runtime's own answer of a model of the served repository."""
    session = onnxruntime.InferenceSession(folder / "models" / name / "1" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def classes(row: NDArray[Any], labels: tuple[str, ...]) -> list[str]:
    """A row of probabilities as Triton writes its classes, the highest first."""
    order = sorted(range(len(row)), key=lambda index: -float(row[index]))
    return [f"{float(row[index]):f}:{index}:{labels[index]}" for index in order]


def _env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
