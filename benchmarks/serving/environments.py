"""The peers' own virtual environments: what is installed, where, and whether it is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

# Peer → what pip installs together, and alone (a wheel of which only the binaries are used).
_PACKAGES: dict[str, tuple[str, ...]] = {
    "mlserver": ("mlserver==1.7.1", "onnxruntime=={onnxruntime}"),
    # The torch that exported the model; where pip finds a CPU build of it, that one.
    "torchserve": (
        "torch==2.13.0",
        "numpy",
        "pyyaml",
        "torchserve==0.12.0",
        "torch-model-archiver==0.12.0",
    ),
    # Its Python stub misreads NumPy 2's arrays, and then answers with empty tensors.
    "triton": ("numpy<2", "onnxruntime=={onnxruntime}"),
}
_ALONE = {"triton": "nvidia-pytriton==0.7.0"}
_DONE = "installed"  # a file in an environment that is complete
PEERS = tuple(_PACKAGES)


def install(directory: Path, onnxruntime: str) -> None:
    """Make the environments that are missing; each of them with the given ONNX Runtime."""
    for peer, packages in _PACKAGES.items():
        if not missing(directory, peer):
            continue
        print(f"installing {peer} into {directory / peer}", flush=True)
        environment = directory / peer
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        _pip(environment, *(each.format(onnxruntime=onnxruntime) for each in packages))
        if peer in _ALONE:
            _pip(environment, "--no-deps", _ALONE[peer])
        if peer == "triton":
            _arrange_triton(environment)
        (environment / _DONE).touch()


def missing(directory: Path, peer: str) -> str:
    """Why the peer cannot run; empty when it can."""
    if not (directory / peer / _DONE).exists():
        return f"not installed in {directory / peer}; --install-peers does it"
    if peer == "torchserve" and not shutil.which("java"):
        return "there is no java, which TorchServe needs"
    return ""


def versions(directory: Path, peer: str) -> dict[str, str]:
    """The installed versions of what matters in a peer's environment."""
    names = ("mlserver", "torchserve", "torch", "nvidia-pytriton", "onnxruntime", "grpcio")
    program = (
        "import importlib.metadata as m, sys\n"
        "for d in m.distributions(): print(d.metadata['Name'], d.version)"
    )
    python = str(directory / peer / "bin" / "python")
    listed = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    installed = dict(line.split() for line in listed.stdout.splitlines())
    return {name: installed[name] for name in names if name in installed}


def site_packages(environment: Path) -> Path:
    """Where the environment's packages are."""
    (found,) = (environment / "lib").glob("python3.*/site-packages")
    return found


def library_directory(environment: Path) -> Path:
    """Where the libpython of the environment's interpreter is, if it has one of its own."""
    return (environment / "bin" / "python").resolve().parent.parent / "lib"


def _pip(environment: Path, *arguments: str) -> None:
    python = str(environment / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def _arrange_triton(environment: Path) -> None:
    """Put the stub of this Python where the Python backend looks for it."""
    server = site_packages(environment) / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / site_packages(environment).parent.name[len("python") :]
    placed = Path(shutil.copy2(stub / "triton_python_backend_stub", server / "backends" / "python"))
    for binary in (placed, server / "bin" / "tritonserver"):
        binary.chmod(0o755)
