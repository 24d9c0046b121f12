"""`python -m serving.lane.build` builds the lane, or says in a line what that takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LIFETIME, ROOT

from serving.lane import build

LANE = Path("serving/lane")
MODULE = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(native, module) { module.attr("built") = true; }
"""

compiles = pytest.mark.skipif(
    bool(list(build.lacking())), reason="what compiles the lane is not installed"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The lane with next to nothing in it to be compiled; its only file of the core is empty."""
    for part in ("core", "binding"):
        (tmp_path / LANE / part).mkdir(parents=True)
    for name in ("CMakeLists.txt", "__init__.py", "build.py"):
        shutil.copy(ROOT / LANE / name, tmp_path / LANE)
    shutil.copy(ROOT / "serving" / "__init__.py", tmp_path / "serving")
    (tmp_path / LANE / "binding" / "module.cpp").write_text(MODULE, encoding="utf-8")
    core(tmp_path, "")
    return tmp_path


def core(checkout: Path, text: str) -> None:
    (checkout / LANE / "core" / "core.cpp").write_text(text, encoding="utf-8")


def run(
    *arguments: str, checkout: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command, with this environment beside ours."""
    return subprocess.run(
        [sys.executable, "-m", "serving.lane.build", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIFETIME,
    )


def test_without_a_toolchain_one_line_says_what_to_install_and_what_it_brings(
    tmp_path: Path,
) -> None:
    result = run(PATH=str(tmp_path), CXX="")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "the native lane is not built: no CMake 3.22 or later, make, C++ compiler"
        " (Debian: apt-get install cmake make g++ libnghttp2-dev libssl-dev);"
        " it answers ModelInfer many times faster, and grpcio serves without it\n"
    )


def test_where_it_is_only_wished_for_a_missing_toolchain_is_no_failure(tmp_path: Path) -> None:
    result = run("--if-possible", PATH=str(tmp_path), CXX="")
    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 1


def test_headers_are_looked_for_by_the_compiler_with_its_own_options(tmp_path: Path) -> None:
    compiler = tmp_path / "blind"
    compiler.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    python = f"Python.h of Python {sys.version_info.major}.{sys.version_info.minor}"
    result = run("--if-possible", CXX=f"{compiler} -nostdinc")
    assert f"no nghttp2/nghttp2.h, openssl/ssl.h, {python} (Debian" in result.stderr


@compiles
def test_what_does_not_compile_is_an_error_in_full(checkout: Path) -> None:
    core(checkout, "".join(f"#error number {n}.\n" for n in range(30)))
    result = run(checkout=checkout)
    assert result.returncode == 1
    assert "number 0." in result.stderr
    assert result.stderr.endswith("\nthe native lane is not built: what is above failed\n")


@compiles
def test_where_it_is_only_wished_for_the_end_of_an_error_is_shown_and_grpcio_serves(
    checkout: Path,
) -> None:
    """And not a module that was built of other sources."""
    core(checkout, "".join(f"#error number {n}.\n" for n in range(30)))
    module = checkout / LANE / build.MODULE
    module.write_bytes(b"of older sources")
    result = run("--if-possible", checkout=checkout)
    assert result.returncode == 0
    *shown, said = result.stderr.splitlines()
    assert len(shown) == build.TOLD
    assert "number 0." not in result.stderr
    assert "rror" in result.stderr
    assert said == (
        "the native lane is not built: what is above failed"
        " (all of it: python -m serving.lane.build); " + build.BRINGS
    )
    assert not module.exists()


@compiles
def test_a_warning_is_an_error_only_for_those_who_ask_for_that(checkout: Path) -> None:
    """What a newer compiler warns of keeps nobody else from the lane."""
    core(checkout, "static int forgotten = 1;\n")
    result = run("--warnings-are-errors", checkout=checkout)
    assert result.returncode == 1
    assert "forgotten" in result.stderr
    result = run("--if-possible", checkout=checkout)
    assert (result.returncode, result.stderr) == (0, "")
    assert (checkout / LANE / build.MODULE).exists()


def test_elsewhere_than_on_linux_it_is_said_that_it_is_for_linux() -> None:
    missing = list(build.lacking("darwin"))
    assert build.refusal(missing) == (
        "the native lane is not built: no Linux, which it is for; " + build.BRINGS
    )


def test_packages_are_named_together_and_commands_of_pip_by_themselves() -> None:
    missing = [("make", "make"), ("pybind11", "pip install pybind11"), ("a C++ compiler", "g++")]
    assert build.refusal(missing) == (
        "the native lane is not built: no make, pybind11, a C++ compiler"
        " (Debian: apt-get install make g++; pip install pybind11); " + build.BRINGS
    )


def test_a_module_is_put_into_place_only_where_it_is_another_one(tmp_path: Path) -> None:
    built, target = tmp_path / "built", tmp_path / "target"
    built.write_bytes(b"one")
    assert build.install(built, target)
    inode = target.stat().st_ino
    assert not build.install(built, target)
    assert target.stat().st_ino == inode
    built.write_bytes(b"another")
    assert build.install(built, target)
    assert target.read_bytes() == b"another"
    # Renamed, so that a process which has mapped the old file keeps it.
    assert target.stat().st_ino != inode
