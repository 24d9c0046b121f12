"""`python -m serving.lane.build` builds the lane, or says in a line what that takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LIFETIME, ROOT

from serving.lane import build


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, with this environment beside ours."""
    return subprocess.run(
        [sys.executable, "-m", "serving.lane.build", *arguments],
        cwd=ROOT,
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


@pytest.mark.skipif(bool(list(build.lacking())), reason="what compiles the lane is not installed")
def test_what_does_not_compile_is_an_error_in_full_even_where_it_is_only_wished_for(
    tmp_path: Path,
) -> None:
    """Everything that is needed is there, but for exceptions, which the compiler is forbidden."""
    forbidding = f"{' '.join(build.compiler() or ['c++'])} -fno-exceptions"
    result = run("--if-possible", "--build-dir", str(tmp_path), CXX=forbidding)
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert result.stderr.endswith("the native lane is not built: what is above failed\n")


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
