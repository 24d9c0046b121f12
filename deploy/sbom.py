"""``python -m deploy.sbom IMAGE FILE``: what is in an image, as a CycloneDX bill of materials.

Told by the image itself, not by what it should hold: Python's distributions by their metadata,
Debian's packages by dpkg. Runs in an environment of its own (``make sbom``) and needs docker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

SCHEMA = SchemaVersion.V1_6
TIMEOUT = 120.0  # seconds for one look into an image
# Runs in the image. Of a distribution, its metadata is told, not its files.
_PROGRAM = """
import importlib.metadata, json, platform, subprocess
system = platform.freedesktop_os_release()
shown = "--showformat=${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\n"
packages = subprocess.run(["dpkg-query", "--show", shown], check=True, capture_output=True)
print(json.dumps({
    "python": platform.python_version(),
    "system": [system["ID"], system["VERSION_ID"]],
    "debian": [line.split("\\t") for line in packages.stdout.decode().splitlines()],
    "distributions": [
        {name: each.read_text(name) for name in ("METADATA", "direct_url.json")}
        for each in importlib.metadata.distributions()
    ],
}))
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """What an image says of itself."""

    python: str  # version
    system: tuple[str, str]  # as /etc/os-release has them: ID, VERSION_ID
    debian: list[tuple[str, str, str, str]]  # status, package, version, architecture
    distributions: list[dict[str, str | None]]  # what is in *.dist-info, by file


def main() -> int:
    """Write it; an exception says what is wrong, as this is a tool of the build."""
    parser = argparse.ArgumentParser(prog="python -m deploy.sbom", description=__doc__)
    parser.add_argument("image", help="name:tag")
    parser.add_argument("file", type=Path, help="where it is written, as JSON")
    arguments = parser.parse_args()
    bom = bill(arguments.image)
    text = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    if error := JsonStrictValidator(SCHEMA).validate_str(text):
        raise ValueError(f"no valid CycloneDX {SCHEMA.to_version()}: {error}")
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_text(text + "\n", encoding="utf-8")
    print(f"{arguments.file}: {len(bom.components)} components of {arguments.image}")
    return 0


def bill(image: str) -> Bom:
    """All components, as parts of the image."""
    contents = look_into(image)
    bom = python_packages(contents)
    bom.components.update(debian_packages(contents))
    bom.components.add(_component(ComponentType.APPLICATION, _python(contents)))
    bom.metadata.component = container(image)
    bom.register_dependency(bom.metadata.component, bom.components)
    return bom


def look_into(image: str) -> Contents:
    """Ask the image; CalledProcessError where it has no Python, or is not there."""
    isolated = ["--rm", "--network", "none", "--read-only", "--entrypoint", "python"]
    told = json.loads(_run(["docker", "run", *isolated, image, "-c", _PROGRAM]))
    return Contents(**told)


def python_packages(contents: Contents) -> Bom:
    """A bill of the distributions, with licences and what depends on what, by cyclonedx-py."""
    with tempfile.TemporaryDirectory() as name:
        for number, files in enumerate(contents.distributions):
            directory = Path(name, f"{number}.dist-info")
            directory.mkdir()
            for file, text in files.items():
                if text is not None:
                    (directory / file).write_text(text, encoding="utf-8")
        # -S: nothing but what PYTHONPATH names is on the path.
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "-S", sys.executable]
        command += ["--spec-version", SCHEMA.to_version()]
        told = _run(command, {**os.environ, "PYTHONPATH": name})
    bom: Bom = Bom.from_json(json.loads(told))
    return bom


def debian_packages(contents: Contents) -> Iterator[Component]:
    """What dpkg says is installed."""
    name, version = contents.system
    for status, package, installed, architecture in contents.debian:
        if status.startswith("ii"):
            qualifiers = {"arch": architecture, "distro": f"{name}-{version}"}
            purl = PackageURL("deb", name, package, installed, qualifiers)
            yield _component(ComponentType.LIBRARY, purl)


def container(image: str) -> Component:
    """The image itself."""
    name, _, tag = image.partition(":")
    told = _run(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    digest = HashType(alg=HashAlgorithm.SHA_256, content=told.strip().partition(":")[2])
    return Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=tag or "latest",
        hashes=[digest],
        bom_ref=image,
    )


def _python(contents: Contents) -> PackageURL:
    """Which in Python's own images is no package of Debian's."""
    return PackageURL("generic", None, "python", contents.python)


def _component(kind: ComponentType, purl: PackageURL) -> Component:
    return Component(
        type=kind, name=purl.name, version=purl.version, purl=purl, bom_ref=purl.to_string()
    )


def _run(command: list[str], environ: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        command, check=True, env=environ, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    )
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
