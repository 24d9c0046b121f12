"""``python -m deploy.licences [--check]``: under which licences the installed packages come.

Told by their own metadata, for this environment. Writes deploy/LICENSES.md, a row for each package
of constraints.txt; `--check` asks instead whether the file has those rows. Either way, a licence
that is not allowed below fails, whoever brought the package along.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "deploy" / "LICENSES.md"

# SPDX identifiers that let us, and who ships our images, do what Apache-2.0 does.
# MPL-2.0 asks for the source of its own files only, which nobody here changes.
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
}
# What older metadata says instead of an SPDX expression: its License field, or its classifier.
NAMES = {
    **dict.fromkeys(("3-Clause BSD License", "BSD 3-Clause License"), "BSD-3-Clause"),
    **dict.fromkeys(("Apache 2.0", "Apache License 2.0"), "Apache-2.0"),
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Whose metadata says no more than BSD; read in their files.
READ = dict.fromkeys(
    ("cycler", "jinja2", "kiwisolver", "mpmath", "nodeenv", "scipy", "sympy"), "BSD-3-Clause"
)
# NVIDIA's, which a torch or ONNX Runtime for GPUs brings along: not free, and in no image for CPUs.
PROPRIETARY = re.compile(r"(nvidia|cuda|tensorrt)-")
# Ours, and what every environment is made with.
LEFT_OUT = {"digits", "pip", "setuptools"}
PARTS = ("client", "serving", "tracing", "training", "cpu", "gpu")


Packages = Mapping[str, Distribution]


def licence(package: Distribution) -> str:
    """An SPDX expression where one can be told, else what the package says of itself."""
    told = package.metadata
    name = canonicalize_name(package.name)
    if name in READ:
        return READ[name]
    classifiers = [
        c.rpartition(" :: ")[2] for c in told.get_all("Classifier", []) if "License" in c
    ]
    fields = [*told.get_all("License-Expression", []), *told.get_all("License", [])]
    candidates: list[str] = [*(field.strip().split("\n")[0] for field in fields), *classifiers]
    for each in candidates:
        if is_allowed(NAMES.get(each, each)):
            return NAMES.get(each, each)
    return next(filter(None, candidates), "none that is told")


def is_allowed(expression: str) -> bool:
    """Whether each part of an SPDX expression is allowed; of alternatives, one has to be, or all
    where there are parentheses."""
    if "(" in expression:
        parts = re.split(r"[()]| AND | OR ", expression)
        return all(part.strip() in ALLOWED for part in parts if part.strip())
    either = [part.split(" AND ") for part in expression.split(" OR ")]
    return any(all(each.strip() in ALLOWED for each in every) for every in either)


def refused(packages: Packages) -> Iterator[str]:
    """What is not allowed, each in a line."""
    for name, package in sorted(packages.items()):
        if not (is_allowed(licence(package)) or PROPRIETARY.match(name)):
            yield f"{name} {package.version}: {licence(package)}"


def table(packages: Packages) -> str:
    """A row for each package of constraints.txt that is installed."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    shipped = {part: _closure(part, packages) for part in PARTS}
    rows = [
        "# Licences of what is installed",
        "",
        "Written by `make licences` from the packages' own metadata; exact versions are in",
        "constraints.txt. A package of no part serves development only.",
        "",
        "| Package | Licence | Part |",
        "|---|---|---|",
    ]
    for name in sorted(pinned & set(packages)):
        parts = ", ".join(part for part in PARTS if name in shipped[part])
        rows.append(f"| {name} | {licence(packages[name])} | {parts or 'development'} |")
    return "\n".join(rows) + "\n"


def _closure(part: str, packages: Packages) -> set[str]:
    """All that one of our extras needs, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = {"": project["dependencies"], **project["optional-dependencies"]}
    waiting, seen = [("digits", part)], {("digits", "")}
    while waiting:
        name, extra = step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        if name == "digits":
            texts = [*ours[""], *ours[extra]]
        else:
            texts = (packages[name].requires or []) if name in packages else []
        for needed in map(Requirement, texts):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                found = canonicalize_name(needed.name)
                waiting += [(found, each) for each in ("", *needed.extras)]
    return {name for name, _ in seen}


def main(argv: list[str] | None = None) -> int:
    """0; 1 where a licence is not allowed, or the table is another's."""
    parser = argparse.ArgumentParser(prog="python -m deploy.licences", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare with the table, write nothing"
    )
    check: bool = parser.parse_args(argv).check
    packages = {str(canonicalize_name(each.name)): each for each in distributions()}
    faults = [
        f"a licence that is not allowed: {each}"
        for each in refused({n: p for n, p in packages.items() if n not in LEFT_OUT})
    ]
    if not check:
        TABLE.write_text(table(packages), encoding="utf-8")
    elif missing := set(table(packages).splitlines()) - set(TABLE.read_text("utf-8").splitlines()):
        rows = ", ".join(sorted(missing))
        faults.append(f"{TABLE.relative_to(ROOT)} lacks {rows}; `make licences` writes it")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
