"""Debian's Chromium by Playwright: how people draw in it, and whatever a page did.

`make web-test` puts the environment of requirements-playwright.txt behind ours on the path: it has
nothing that ours has, and is 130 MB which no other test needs.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Playwright, Response, expect

Point = tuple[float, float]
Stroke = Sequence[Point]

# How people write them, in a square of side 1 whose origin is above on the left.
STROKES: dict[str, list[Stroke]] = {
    "3": [
        [
            *((0.30, 0.24), (0.38, 0.17), (0.50, 0.14), (0.62, 0.17), (0.69, 0.26)),
            *((0.67, 0.37), (0.58, 0.45), (0.40, 0.48), (0.60, 0.51), (0.70, 0.60)),
            *((0.72, 0.72), (0.63, 0.83), (0.49, 0.87), (0.36, 0.84), (0.28, 0.77)),
        ]
    ],
    "7": [[(0.28, 0.18), (0.72, 0.17), (0.62, 0.40), (0.53, 0.62), (0.46, 0.86)]],
}
# Of a stroke, what a hand moves between two events.
STEP = 0.03
# For what the page is to do at once, on a machine that is busy with something else.
MILLISECONDS = 30_000

LAUNCH = (
    # Of the machines that there are, only this one: a page must work far from any network.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
    "--no-proxy-server",
)
TELL_VIOLATIONS = """
addEventListener("securitypolicyviolation", event =>
  console.error(`${event.violatedDirective} forbids ${event.blockedURI}`));
"""


def chromium() -> str:
    """The browser's program: what CHROMIUM says, or chromium on the PATH."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert found, "there is no chromium on the PATH (Debian: apt-get install chromium)"
    return found


@contextmanager
def launched(playwright: Playwright, *arguments: str) -> Iterator[Browser]:
    """The browser, without a window."""
    browser = playwright.chromium.launch(
        executable_path=chromium(),
        # Its sandbox refuses root, who tests in containers.
        chromium_sandbox=os.geteuid() != 0,
        args=[*LAUNCH, *arguments],
    )
    try:
        yield browser
    finally:
        browser.close()


@dataclass
class Visit:
    """A page in a profile of its own, what it asked for, and what went wrong in it."""

    page: Page
    addresses: list[str] = field(default_factory=list)
    classified: list[Response] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        page.add_init_script(TELL_VIOLATIONS)
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("response", self._response)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _response(self, response: Response) -> None:
        if urlsplit(response.url).path == "/v1/classify":
            self.classified.append(response)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.text} ({message.location.get('url', '')})")

    def expect_faults(self, pattern: str) -> None:
        """There were some, and those that it finds are none to be told of in the end."""
        others = [each for each in self.faults if not re.search(pattern, each)]
        assert len(others) < len(self.faults), self.faults
        self.faults = others

    def hosts(self) -> set[str]:
        """Those that were asked for anything; what the page itself made has none."""
        return {urlsplit(address).netloc for address in self.addresses} - {""}

    def pad(self) -> Locator:
        """What is drawn on."""
        return self.page.locator("canvas#pad")

    def model(self, name: str) -> Locator:
        """What is told of one."""
        return self.page.locator(f'article[data-model="{name}"]')

    def expect_settled(self) -> None:
        """Until the answers are those to all that was drawn, and not to its beginning."""
        expect(self.page.locator("#answers")).to_have_attribute("aria-busy", "false")

    def answer(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of what is shown of a model: the server's answer, and the model's part of it."""
        shown = self.model(name).get_attribute("data-prediction-id")
        assert shown
        for response in reversed(self.classified):
            body = response.json()
            for answer in body.get("answers", ()):
                if answer.get("prediction_id") == shown:
                    return body, answer
        raise AssertionError(f"no answer had the prediction id {shown}")


Draw = Callable[[Visit, str], None]


def by_mouse(visit: Visit, digit: str) -> None:
    """Draw with the button pressed."""
    mouse = visit.page.mouse
    for first, *rest in on_pad(visit, digit):
        mouse.move(*first)
        mouse.down()
        for point in rest:
            mouse.move(*point)
        mouse.up()


def by_finger(visit: Visit, digit: str) -> None:
    """Draw on a touch screen."""
    session = visit.page.context.new_cdp_session(visit.page)

    def touch(kind: str, *points: Point) -> None:
        touched = [{"x": x, "y": y, "force": 0.5} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    for first, *rest in on_pad(visit, digit):
        touch("touchStart", first)
        for point in rest:
            touch("touchMove", point)
        touch("touchEnd")
    session.detach()


def by_pen(visit: Visit, digit: str) -> None:
    """Draw on a tablet."""
    session = visit.page.context.new_cdp_session(visit.page)

    def move(kind: str, point: Point, buttons: int) -> None:
        pen = {"pointerType": "pen", "force": 0.5, "button": "left", "buttons": buttons}
        x, y = point
        event = {"type": kind, "x": x, "y": y, "clickCount": 1, **pen}
        session.send("Input.dispatchMouseEvent", event)

    for points in on_pad(visit, digit):
        move("mousePressed", points[0], 1)
        for point in points[1:]:
            move("mouseMoved", point, 1)
        move("mouseReleased", points[-1], 0)
    session.detach()


def on_pad(visit: Visit, digit: str) -> list[list[Point]]:
    """A digit's strokes, in the page's pixels."""
    pad = visit.pad()
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    return [
        [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in along(stroke)]
        for stroke in STROKES[digit]
    ]


def along(stroke: Stroke) -> Iterator[Point]:
    """Points of a stroke, at most STEP apart."""
    stroke = rounded(rounded(stroke))
    yield stroke[0]
    for (x0, y0), (x1, y1) in itertools.pairwise(stroke):
        steps = math.ceil(math.hypot(x1 - x0, y1 - y0) / STEP)
        for step in range(1, steps + 1):
            yield x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps


def rounded(stroke: Stroke) -> Stroke:
    """Without its corners, as no hand makes them (Chaikin's way to cut them)."""
    cut = [stroke[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(stroke):
        cut.append((0.75 * x0 + 0.25 * x1, 0.75 * y0 + 0.25 * y1))
        cut.append((0.25 * x0 + 0.75 * x1, 0.25 * y0 + 0.75 * y1))
    return [*cut, stroke[-1]]
