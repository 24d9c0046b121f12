"""``python -m serving.lane.build``: `serving.lane.native`, compiled for this interpreter.

CMake knows how; this asks whether it can, and puts the module beside itself. Standard library only,
and no part of a server: whoever wants the lane imports `serving.lane.native`, or finds it missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "lane"
MODULE = f"native{sysconfig.get_config_var('EXT_SUFFIX')}"
COMPILERS = ("c++", "g++", "clang++")
CMAKE = (3, 22)
# A header, and the Debian package that brings it.
HEADERS = {"nghttp2/nghttp2.h": "libnghttp2-dev", "openssl/ssl.h": "libssl-dev"}
BRINGS = "it answers ModelInfer many times faster, and grpcio serves without it"
# Lines of what a compiler said, where grpcio is as good: its errors come last.
TOLD = 20

IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("serving.lane.native", sys.argv[1])
importlib.util.module_from_spec(spec)
"""


class BuildError(Exception):
    """CMake or a compiler refused; the text is all that they said."""


def main(argv: Sequence[str]) -> int:
    """Build, and say so in a line; 1 where that cannot be, 0 all the same with --if-possible."""
    parser = argparse.ArgumentParser(prog="python -m serving.lane.build", description=__doc__)
    parser.add_argument(
        "--if-possible", action="store_true", help="succeed also where it cannot be built"
    )
    parser.add_argument(
        "--warnings-are-errors", action="store_true", help="for whoever works on the lane"
    )
    parser.add_argument(
        "--build-dir", type=Path, default=BUILD, metavar="DIR", help="what is kept between builds"
    )
    parser.add_argument(
        "--debug-info", action="store_true", help="keep names and lines, for perf and debuggers"
    )
    arguments = parser.parse_args(argv)
    if not (HERE / "CMakeLists.txt").exists():
        print("the native lane is not built: its sources are in a checkout only", file=sys.stderr)
        return 0 if arguments.if_possible else 1
    if missing := list(lacking()):
        print(refusal(missing), file=sys.stderr)
        return 0 if arguments.if_possible else 1
    try:
        build(arguments.build_dir.resolve(), arguments.debug_info, arguments.warnings_are_errors)
    except BuildError as error:
        return failed(str(error), arguments.if_possible)
    return 0


def failed(said: str, if_possible: bool) -> int:
    """Show what was said, or the end of it where grpcio is to serve instead; the exit status.

    There, a module that is left of older sources goes: it would be loaded with Python of these.
    """
    shown = said.splitlines()
    print(*(shown[-TOLD:] if if_possible else shown), sep="\n", file=sys.stderr)
    refused = "the native lane is not built: what is above failed"
    if not if_possible:
        print(refused, file=sys.stderr)
        return 1
    (HERE / MODULE).unlink(missing_ok=True)
    print(f"{refused} (all of it: python -m serving.lane.build); {BRINGS}", file=sys.stderr)
    return 0


def refusal(missing: Sequence[tuple[str, str]]) -> str:
    """One line: what is missing, how to get it, and what for."""
    whats = ", ".join(what for what, _ in missing)
    packages = " ".join(way for _, way in missing if not way.startswith("pip "))
    ways = [f"Debian: apt-get install {packages}"] if packages else []
    ways += [way for _, way in missing if way.startswith("pip ")]
    brought = f" ({'; '.join(ways)})" if ways else ""
    return f"the native lane is not built: no {whats}{brought}; {BRINGS}"


def lacking(platform: str = sys.platform) -> Iterator[tuple[str, str]]:
    """What is missing, and what brings it: packages of Debian, a command of pip's, or nothing."""
    if platform != "linux":
        # It stands on epoll and eventfd.
        yield "Linux, which it is for", ""
        return
    if not has_cmake():
        yield f"CMake {'.'.join(map(str, CMAKE))} or later", "cmake"
    if shutil.which("make") is None and "CMAKE_GENERATOR" not in os.environ:
        yield "make", "make"
    if importlib.util.find_spec("pybind11") is None:
        yield "pybind11", "pip install 'pybind11>=3'"
    if (command := compiler()) is None:
        # Whether there are headers, only a compiler knows.
        yield "C++ compiler", " ".join(["g++", *HEADERS.values()])
        return
    for header, package in HEADERS.items():
        if not compiles(command, header):
            yield header, package
    if not compiles(command, "Python.h", *python_includes()):
        yield f"Python.h of Python {sysconfig.get_python_version()}", "python3-dev"


def compiler() -> list[str] | None:
    """The command of a C++ compiler: CXX, which may have options, or else the first one found."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def compiles(command: Sequence[str], header: str, *options: str) -> bool:
    """Whether the compiler finds the header, wherever that may be."""
    return (
        subprocess.run(
            [*command, *options, "-fsyntax-only", "-x", "c++", "-"],
            input=f"#include <{header}>\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        ).returncode
        == 0
    )


def python_includes() -> list[str]:
    """Options for this interpreter's headers."""
    paths = sysconfig.get_paths()
    return [f"-I{path}" for path in sorted({paths["include"], paths["platinclude"]})]


def has_cmake() -> bool:
    """Whether there is a CMake that is new enough."""
    cmake = shutil.which("cmake")
    if cmake is None:
        return False
    said = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= CMAKE


def build(directory: Path, debug_info: bool, warnings_are_errors: bool) -> None:
    """Compile what changed, and put the module beside this file. Raises BuildError."""
    start = time.monotonic()
    command = compiler()
    assert command is not None
    if not (HERE / MODULE).exists():
        print(f"building the native lane with {version(command)} ...", flush=True)
    build_type = "RelWithDebInfo" if debug_info else "Release"
    configure(directory, command, build_type, warnings_are_errors)
    run("cmake", "--build", directory, "--target", "native", "--parallel", str(cpus()))
    if install(checked(directory / MODULE), HERE / MODULE):
        seconds = time.monotonic() - start
        print(f"the native lane: built by {version(command)} in {seconds:.0f} s: {HERE / MODULE}")
    else:
        print("the native lane: built already")


def configure(
    directory: Path, command: Sequence[str], build_type: str, warnings_are_errors: bool
) -> None:
    """Have CMake look around; it does so by itself later on, where its files changed."""
    options = {
        "CMAKE_BUILD_TYPE": build_type,
        "CMAKE_CXX_COMPILER": shutil.which(command[0]) or command[0],
        "CMAKE_CXX_FLAGS": shlex.join(command[1:]),
        "LANE_WERROR": "ON" if warnings_are_errors else "OFF",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11_directory(),
    }
    text = "".join(f"{name}={value}\n" for name, value in options.items())
    asked, cache = directory / "asked-for.txt", directory / "CMakeCache.txt"
    if cache.exists() and asked.exists() and asked.read_text(encoding="utf-8") == text:
        return
    # What was found for another interpreter or compiler is in here.
    cache.unlink(missing_ok=True)
    run("cmake", "-S", HERE, "-B", directory, *(f"-D{each}" for each in text.splitlines()))
    asked.write_text(text, encoding="utf-8")


def pybind11_directory() -> Path:
    """Where CMake finds pybind11's package, of this interpreter."""
    found = importlib.util.find_spec("pybind11")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "share" / "cmake" / "pybind11"


def run(*command: str | Path) -> None:
    """Run it, in silence where it succeeds."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise BuildError(f"{shlex.join(done.args)}\n{done.stdout.rstrip()}")


def checked(built: Path) -> Path:
    """The module, which can be imported: a linker does not mind what a module lacks."""
    run(sys.executable, "-c", IMPORT, built)
    return built


def install(built: Path, target: Path) -> bool:
    """Put the module there, where it is another one; whether it was."""
    if target.exists() and built.read_bytes() == target.read_bytes():
        return False
    # Renamed into place: a server that runs keeps the file that it has mapped.
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(built, fresh)
    fresh.replace(target)
    return True


def version(command: Sequence[str]) -> str:
    """The compiler, as it calls itself."""
    said = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    return said.partition("\n")[0].strip() or shlex.join(command)


def cpus() -> int:
    """How many files to compile at a time."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
