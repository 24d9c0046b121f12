"""``python -m deploy.torchserve.archive``: the newest version of each model as TorchServe's .mar.

TorchServe runs what it opens, so a file's hash is compared with the manifest's before, on the very
copy that is packed. Runs in TorchServe's environment.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.torchserve.settings import BATCHING, HANDLER, STORE
from model_repository import (
    TORCHSCRIPT_PLATFORM,
    Manifest,
    RepositoryError,
    model_names,
    read_manifest,
    sha256,
    versions,
)


def pack_all(repository: Path, store: Path, only: str = "") -> list[Path]:
    """The archives of all models that have TorchScript, or of `only` some, with commas between.

    The store holds no others then. RepositoryError, also where there is none; OSError.
    """
    names = only.split(",") if only else model_names(repository)
    store.mkdir(parents=True, exist_ok=True)
    for stale in store.glob("*.mar"):
        stale.unlink()
    archives = [archive for name in names if (archive := _pack_newest(repository / name, store))]
    if not archives:
        raise RepositoryError(f"{repository}: no model with TorchScript")
    return archives


def _pack_newest(model: Path, store: Path) -> Path | None:
    numbers = versions(model)
    if not numbers:
        raise RepositoryError(f"{model}: no version")
    return pack(model / str(numbers[-1]), store)


def pack(directory: Path, store: Path) -> Path | None:
    """The archive of one version; None where it has no TorchScript. RepositoryError, OSError."""
    manifest = read_manifest(directory)
    variant = manifest.variant(TORCHSCRIPT_PLATFORM, "fp32")
    if variant is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / variant.file
        shutil.copyfile(directory / variant.file, copy)
        actual = sha256(copy)
        if actual != variant.sha256:
            path = directory / variant.file
            raise RepositoryError(f"{path}: sha256 is {actual}, the manifest says {variant.sha256}")
        _archive(manifest, copy, store)
    return store / f"{manifest.name}.mar"


def _archive(manifest: Manifest, torchscript: Path, store: Path) -> None:
    command = [str(Path(sys.executable).parent / "torch-model-archiver")]
    command += ["--model-name", manifest.name, "--version", str(manifest.version)]
    command += ["--serialized-file", str(torchscript), "--export-path", str(store)]
    command += ["--handler", str(HANDLER)]
    command += ["--config-file", str(BATCHING), "--archive-format", "zip-store"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RepositoryError(f"{manifest.name}: torch-model-archiver failed: {result.stderr}")


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """What a command that packs is told: which models, from where, to where."""
    made = argparse.ArgumentParser(prog=prog, description=description)
    made.add_argument("--model-repository", type=Path, default=Path("models"))
    text = "directory for their archives, whose others are removed [%(default)s]"
    made.add_argument("--model-store", type=Path, default=STORE, help=text)
    made.add_argument("--models", default="", help="only these, with commas between")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all were packed; 1 with the reason when a model cannot be."""
    arguments = parser("python -m deploy.torchserve.archive", __doc__).parse_args(argv)
    try:
        packed = pack_all(arguments.model_repository, arguments.model_store, arguments.models)
        print(*packed, sep="\n")
    except (RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
