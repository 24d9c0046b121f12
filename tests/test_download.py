"""The downloader against a real HTTP server on this machine: interrupted, lied to, and twice."""

from __future__ import annotations

import gzip
import hashlib
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from training.bundled import read_digits
from training.data import DataError, load_dataset
from training.download import fetch
from training.idx import TRAIN, VALID
from training.mirrors import Published, first_answering

STEM = "train-labels-idx1-ubyte"
CONTENT = np.random.default_rng(0).integers(0, 10, 300_000).astype(np.uint8).tobytes()
PACKED = gzip.compress(CONTENT)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Mirror:
    """A web server of files; how it misbehaves can be set while it runs."""

    files: dict[str, bytes]
    cut: int | None = None  # close the connection after so many bytes of a body
    ranges: bool = True  # honour Range
    stall: threading.Event | None = None  # wait for it in the middle of a body
    stalled: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # GETs: name, Range


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_HEAD(self) -> None:
        self._head(self.mirror.files.get(self.path[1:]), 0)

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.mirror.requests.append((self.path[1:], span))
        data = self.mirror.files.get(self.path[1:])
        match = re.match(r"bytes=(\d+)-", span or "") if self.mirror.ranges else None
        start = int(match[1]) if match else 0
        if self._head(data, start) and data is not None:
            self._body(data[start:])

    def _head(self, data: bytes | None, start: int) -> bool:
        if data is None or (start and start >= len(data)):
            self.send_error(404 if data is None else 416)
            return False
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        return True

    def _body(self, data: bytes) -> None:
        if self.mirror.stall is not None:
            self.wfile.write(data[: len(data) // 2])
            self.mirror.stalled.set()
            self.mirror.stall.wait()
            return
        self.wfile.write(data[: self.mirror.cut])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


Serve = Callable[..., Mirror]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a mirror of {file name: bytes}; all are stopped afterwards."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread, Mirror]] = []

    def start(files: dict[str, bytes], **behaviour: object) -> Mirror:
        mirror = Mirror(files, **behaviour)  # type: ignore[arg-type]
        handler = type("Handler", (_Handler,), {"mirror": mirror})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        mirror.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread, mirror))
        return mirror

    yield start
    for server, thread, mirror in running:
        if mirror.stall is not None:
            mirror.stall.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def dead() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/"


def published(*mirrors: Mirror | str) -> Published:
    urls = tuple(mirror if isinstance(mirror, str) else mirror.url for mirror in mirrors)
    return Published(urls, {STEM: MD5})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def downloaded(folder: Path) -> bytes:
    """The content of the one file, after checking that nothing else is there."""
    assert names(folder) == [f"{STEM}.gz"]
    return gzip.decompress((folder / f"{STEM}.gz").read_bytes())


def failure(folder: Path, source: Published, **limits: float) -> str:
    with pytest.raises(DataError) as raised:
        fetch(folder, source, **limits)  # type: ignore[arg-type]
    return str(raised.value)


def test_a_download_makes_the_folder_and_the_file(serve: Serve, tmp_path: Path) -> None:
    mirror = serve({f"{STEM}.gz": PACKED})
    fetch(tmp_path / "a" / "b", published(mirror))
    assert downloaded(tmp_path / "a" / "b") == CONTENT


def test_what_is_there_already_is_not_asked_for(serve: Serve, tmp_path: Path) -> None:
    mirror = serve({f"{STEM}.gz": PACKED})
    fetch(tmp_path, published(mirror))
    fetch(tmp_path, published(mirror))
    assert mirror.requests == [(f"{STEM}.gz", None)]


def test_a_dead_mirror_is_passed_over_for_the_next(serve: Serve, dead: str, tmp_path: Path) -> None:
    fetch(tmp_path, published(dead, serve({f"{STEM}.gz": PACKED})))
    assert downloaded(tmp_path) == CONTENT


def test_a_mirror_without_the_file_is_passed_over_for_the_next(
    serve: Serve, tmp_path: Path
) -> None:
    fetch(tmp_path, published(serve({}), serve({f"{STEM}.gz": PACKED})))
    assert downloaded(tmp_path) == CONTENT


def test_when_every_mirror_fails_each_ones_fault_is_named(
    serve: Serve, dead: str, tmp_path: Path
) -> None:
    empty = serve({})
    message = failure(tmp_path, published(dead, empty))
    hosts = [url.removeprefix("http://").rstrip("/") for url in (dead, empty.url)]
    assert message == (
        f"{STEM}.gz: could not be downloaded "
        f"({hosts[0]}: Connection refused; {hosts[1]}: HTTP 404 Not Found)"
    )


def test_a_truncated_body_is_continued_by_the_next_run(serve: Serve, tmp_path: Path) -> None:
    mirror = serve({f"{STEM}.gz": PACKED}, cut=50_000)
    message = failure(tmp_path, published(mirror))
    assert f"ended after 50000 of {len(PACKED)} bytes" in message
    assert names(tmp_path) == [f"{STEM}.gz.part"]
    mirror.cut = None
    fetch(tmp_path, published(mirror))
    assert downloaded(tmp_path) == CONTENT
    assert mirror.requests == [(f"{STEM}.gz", None), (f"{STEM}.gz", "bytes=50000-")]


def test_a_truncated_body_is_continued_by_the_next_mirror(serve: Serve, tmp_path: Path) -> None:
    cut, whole = serve({f"{STEM}.gz": PACKED}, cut=50_000), serve({f"{STEM}.gz": PACKED})
    fetch(tmp_path, published(cut, whole))
    assert downloaded(tmp_path) == CONTENT
    assert whole.requests == [(f"{STEM}.gz", "bytes=50000-")]


def test_a_server_that_knows_no_ranges_sends_it_all_again(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.gz.part").write_bytes(PACKED[:1000])
    fetch(tmp_path, published(serve({f"{STEM}.gz": PACKED}, ranges=False)))
    assert downloaded(tmp_path) == CONTENT


def test_a_part_of_another_mirrors_gzip_is_fetched_anew(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.gz.part").write_bytes(gzip.compress(CONTENT, 1)[:1000])
    mirror = serve({f"{STEM}.gz": PACKED})
    fetch(tmp_path, published(mirror))
    assert downloaded(tmp_path) == CONTENT
    assert [span for _, span in mirror.requests] == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_is_fetched_anew(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.gz.part").write_bytes(b"x" * (len(PACKED) + 10))
    fetch(tmp_path, published(serve({f"{STEM}.gz": PACKED})))
    assert downloaded(tmp_path) == CONTENT


def test_a_part_that_is_whole_needs_no_mirror(dead: str, tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.gz.part").write_bytes(PACKED)
    fetch(tmp_path, published(dead))
    assert downloaded(tmp_path) == CONTENT


@pytest.mark.parametrize(
    "lie",
    [gzip.compress(b"other"), b"<html>log in</html>", PACKED[:-9]],
    ids=["another file", "a page", "cut off"],
)
def test_wrong_content_is_dropped_for_the_next_mirrors(
    lie: bytes, serve: Serve, tmp_path: Path
) -> None:
    fetch(tmp_path, published(serve({f"{STEM}.gz": lie}), serve({f"{STEM}.gz": PACKED})))
    assert downloaded(tmp_path) == CONTENT


def test_wrong_content_everywhere_leaves_nothing_and_names_the_file(
    serve: Serve, tmp_path: Path
) -> None:
    message = failure(tmp_path, published(serve({f"{STEM}.gz": gzip.compress(b"other")})))
    assert message.startswith(f"{STEM}.gz: could not be downloaded")
    assert f"expected {MD5}" in message
    assert names(tmp_path) == []


def test_a_silent_mirror_is_given_up_after_the_timeout(serve: Serve, tmp_path: Path) -> None:
    mirror = serve({f"{STEM}.gz": PACKED}, stall=threading.Event())
    assert "timed out" in failure(tmp_path, published(mirror), timeout=2.0)
    assert names(tmp_path) == [f"{STEM}.gz.part"]


def test_no_mirror_is_asked_once_the_budget_is_spent(serve: Serve, tmp_path: Path) -> None:
    mirror = serve({f"{STEM}.gz": PACKED})
    assert "not finished in the time allowed" in failure(tmp_path, published(mirror), budget=0)
    assert mirror.requests == []


def test_a_killed_download_leaves_only_a_part_and_a_rerun_completes_it(
    serve: Serve, tmp_path: Path
) -> None:
    mirror = serve({f"{STEM}.gz": PACKED}, stall=threading.Event())
    script = (
        "from pathlib import Path; from training.download import fetch;"
        "from training.mirrors import Published;"
        f"fetch(Path({str(tmp_path)!r}), Published(({mirror.url!r},), {{{STEM!r}: {MD5!r}}}))"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", script], cwd=root) as process:
        assert mirror.stalled.wait(60)
        process.kill()
    assert names(tmp_path) in ([f"{STEM}.gz.part"], [])
    mirror.stall = None
    fetch(tmp_path, published(mirror))
    assert downloaded(tmp_path) == CONTENT


def test_two_downloads_at_once_fetch_the_file_once(serve: Serve, tmp_path: Path) -> None:
    mirror = serve({f"{STEM}.gz": PACKED})
    threads = [threading.Thread(target=fetch, args=(tmp_path, published(mirror))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloaded(tmp_path) == CONTENT
    assert mirror.requests == [(f"{STEM}.gz", None)]


def test_a_download_does_not_wait_longer_than_its_budget_for_another(
    serve: Serve, tmp_path: Path
) -> None:
    release = threading.Event()
    mirror = serve({f"{STEM}.gz": PACKED}, stall=release)
    first = threading.Thread(target=failure, args=(tmp_path, published(mirror)))
    first.start()
    assert mirror.stalled.wait(60)
    message = failure(tmp_path, published(mirror), budget=0)
    release.set()
    first.join()
    assert message == f"{tmp_path}: another process is still downloading to it"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = failure(tmp_path / "file", published())
    assert message == f"{tmp_path / 'file'}: cannot be written: File exists"


def test_progress_is_shown_on_stderr_alone(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(tmp_path, published(serve({f"{STEM}.gz": PACKED})), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{STEM}.gz" in captured.err


def test_the_first_mirror_to_have_the_file_answers(serve: Serve, dead: str) -> None:
    mirror = serve({f"{STEM}.gz": PACKED})
    assert first_answering(published(dead, serve({}), mirror), 10.0) == mirror.url
    assert first_answering(published(dead, serve({})), 10.0) is None


# Sources


@pytest.fixture(scope="module")
def like_mnist() -> tuple[dict[str, bytes], dict[str, str]]:
    """Four IDX files of scikit-learn's digits by name, gzipped, and the md5 of each by stem."""
    contents: dict[str, bytes] = {}
    for (images, labels), split in zip(
        (TRAIN, VALID), read_digits(tuple("0123456789")), strict=True
    ):
        count = len(split.labels)
        contents[images] = struct.pack(">4I", 0x803, count, 28, 28) + split.images.tobytes()
        contents[labels] = struct.pack(">2I", 0x801, count) + bytes(split.labels.tolist())
    files = {f"{stem}.gz": gzip.compress(content) for stem, content in contents.items()}
    return files, {stem: hashlib.md5(c).hexdigest() for stem, c in contents.items()}


def test_auto_downloads_where_a_mirror_answers(
    serve: Serve, like_mnist: tuple[dict[str, bytes], dict[str, str]], tmp_path: Path
) -> None:
    files, md5 = like_mnist
    said: list[str] = []
    source = Published((serve(files).url,), md5)
    dataset = load_dataset(
        "auto", ("3", "7"), cache_dir=tmp_path, published=source, say=said.append
    )
    cache = tmp_path / "mnist"
    assert dataset.origin == f"mnist: auto downloaded it to {cache}"
    assert said == [f"downloading MNIST to {cache}"]
    bundled = load_dataset("digits", ("3", "7"))
    assert dataset.checksum == bundled.checksum


def test_auto_takes_digits_and_says_why_where_no_mirror_answers(dead: str, tmp_path: Path) -> None:
    dataset = load_dataset("auto", ("3", "7"), cache_dir=tmp_path, published=published(dead))
    assert dataset.name == "digits"
    assert dataset.origin == (
        "digits, bundled with scikit-learn: auto has no MNIST: "
        f"none in {tmp_path / 'mnist'}, and no mirror answered within 3 s"
    )


def test_auto_takes_digits_where_mirrors_lie(serve: Serve, tmp_path: Path) -> None:
    source = published(serve({f"{STEM}.gz": b"<html>log in</html>"}))
    dataset = load_dataset("auto", ("3", "7"), cache_dir=tmp_path, published=source)
    assert dataset.name == "digits"
    assert f"{STEM}.gz: could not be downloaded" in dataset.origin


def test_mnist_that_cannot_be_downloaded_is_an_error(dead: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not be downloaded .*Connection refused"):
        load_dataset("mnist", ("3", "7"), cache_dir=tmp_path, published=published(dead))
