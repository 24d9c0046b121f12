"""``python -m picture FILE.png``: the page as somebody has drawn on it, for README.

Serves a repository as its users would, so that figures in the picture are real ones.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from browsing import Visit, by_mouse, launched
from conftest import running_server
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from deploy.service import latest
from model_repository import HOLDOUT
from serving.client import Client

MODELS = ("resnet18_0_9", "mlp_deep_0_9", "resnet18")
SIZE = {"width": 1280, "height": 900}
COLOURS = 128  # as few as nobody sees
# What the drawn digits are, and what people say that they were.
DRAWN = (("7", "7"), ("3", "3"), ("7", "1"), ("7", "7"), ("3", "8"), ("3", "3"))
SECONDS_BEFORE = 60.0  # of others' requests, which the panel shows


def main() -> int:
    """0 once the file is written."""
    parser = argparse.ArgumentParser(prog="python -m picture", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    arguments = parser.parse_args()
    with (
        few(arguments.model_repository) as repository,
        running_server(repository, transport="auto", allow_http=True) as running,
        others(running.address, repository) as over,
    ):
        over.wait(SECONDS_BEFORE)
        picture = taken(running.http_url)
    arguments.file.parent.mkdir(exist_ok=True)
    write(picture, arguments.file)
    print(f"wrote {arguments.file}, {arguments.file.stat().st_size:,} bytes")
    return 0


@contextmanager
def few(repository: Path) -> Iterator[Path]:
    """A repository of those models only that the picture has room for."""
    with tempfile.TemporaryDirectory() as directory:
        for name in MODELS:
            # A server follows no links out of its repository.
            shutil.copytree(repository / name, Path(directory, name))
        yield Path(directory)


@contextmanager
def others(address: str, repository: Path) -> Iterator[threading.Event]:
    """Somebody else asks about a few digits at a time, now and then."""
    over = threading.Event()
    with np.load(latest(repository, MODELS[0]) / HOLDOUT, allow_pickle=False) as holdout:
        images = holdout["images"]

    def ask() -> None:
        random = np.random.default_rng(3)
        with Client(address) as client:
            while not over.wait(random.exponential(0.05)):
                chosen = random.integers(0, len(images), random.integers(1, 9))
                client.classify(images[chosen], MODELS[random.integers(0, len(MODELS))])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def taken(url: str) -> bytes:
    """A PNG of the page after feedback on some digits, and with another one drawn."""
    with sync_playwright() as playwright, launched(playwright) as browser:
        visit = Visit(browser.new_page(viewport=SIZE, color_scheme="light"))
        visit.page.goto(url)
        for drawn, truth in DRAWN:
            visit.page.locator("button#clear").click()
            by_mouse(visit, drawn)
            visit.expect_settled()
            visit.model(MODELS[0]).locator(f'button.truth[data-truth="{truth}"]').click()
            expect(visit.model(MODELS[0])).to_have_attribute("data-feedback", "sent")
        picture: bytes = visit.page.screenshot(full_page=True)
    return picture


def write(picture: bytes, file: Path) -> None:
    """With few colours, which a page of text and lines does with."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
