"""The page in Chromium: people draw, see what ResNet18 says of it, and tell whether it was right.

MODEL_REPOSITORY names a repository with `resnet18_0_9` and `resnet18`; `make web-test` trains them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Draw, Visit, by_finger, by_mouse, by_pen, launched, on_pad
from certificates import authority
from conftest import (
    PATIENCE,
    ROOT,
    Digits,
    Running,
    publish_classifier,
    running_server,
    server_process,
)
from numpy.typing import NDArray
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Locator, Playwright, Route, expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from deploy.service import latest
from model_repository import HOLDOUT, read_manifest

MODELS = ROOT / os.environ.get("MODEL_REPOSITORY", "models")
TEN_DIGITS, THREES_OR_SEVENS = "resnet18_0_9", "resnet18"
RESNETS = (TEN_DIGITS, THREES_OR_SEVENS)
EXPLICIT = {"model_control_mode": "explicit", "load_model": RESNETS}
WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 360, "height": 740}
PHONE = {"viewport": NARROW, "device_scale_factor": 3, "is_mobile": True, "has_touch": True}

Visiting = Callable[..., AbstractContextManager[Visit]]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with launched(playwright) as found:
        yield found


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    """Both ResNets, for the tests that do not mind company."""
    with running_server(MODELS, transport="auto", allow_http=True, **EXPLICIT) as running:
        yield running


@contextmanager
def visit_to(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """By Playwright's options of a context; in the end nothing may have gone wrong in the page, and
    nobody else been asked."""
    context = browser.new_context(**{"viewport": WIDE, **options})
    try:
        visit = Visit(context.new_page())
        visit.page.goto(url)
        yield visit
        assert visit.faults == []
        assert visit.hosts() == {urlsplit(url).netloc}
    finally:
        context.close()


@pytest.fixture
def visiting(browser: Browser) -> Visiting:
    """`with visiting(url, viewport=NARROW) as visit:`."""
    return functools.partial(visit_to, browser)


@pytest.fixture
def visit(visiting: Visiting, served: Running) -> Iterator[Visit]:
    """The page of the server that all share."""
    with visiting(served.http_url) as found:
        yield found


def labels(metrics_url: str) -> Counter[tuple[str, ...]]:
    """What /metrics shows of feedback: by model, truth, prediction, and whether they agree."""
    with urllib.request.urlopen(metrics_url, timeout=PATIENCE) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    names = ("model", "truth", "predicted", "correct")
    return Counter(
        {
            tuple(each.labels[name] for name in names): int(each.value)
            for each in samples
            if each.name == "inference_feedback_total"
        }
    )


def quality(running: Running, name: str) -> dict[str, Any]:
    """What the server says of a model's accuracy."""
    address = f"{running.http_url}/v1/quality?model={name}"
    with urllib.request.urlopen(address, timeout=PATIENCE) as response:
        (found,) = json.loads(response.read())["models"]
    assert isinstance(found, dict)
    return found


def expect_label(visit: Visit, digit: str, *models: str) -> None:
    for name in models or RESNETS:
        expect(visit.model(name)).to_have_attribute("data-label", digit)


def draw(visit: Visit, digit: str, *models: str) -> None:
    """By mouse, until models have answered to all of it."""
    by_mouse(visit, digit)
    visit.expect_settled()
    expect_label(visit, digit, *models)


def tell(visit: Visit, name: str, button: str) -> None:
    """Click a button of a model's, until its feedback has been counted."""
    visit.model(name).locator(button).click()
    expect(visit.model(name)).to_have_attribute("data-feedback", "sent")


def digit_of_holdout(label: str) -> NDArray[np.uint8]:
    """One that ResNet18 was not trained on: (28, 28), white on black."""
    directory = latest(MODELS, TEN_DIGITS)
    with np.load(directory / HOLDOUT, allow_pickle=False) as holdout:
        index = read_manifest(directory).labels.index(label)
        found: NDArray[np.uint8] = holdout["images"][holdout["labels"] == index][0]
    return found


def photograph(digit: NDArray[np.uint8], format: str) -> bytes:
    """Enlarged tenfold, black on white, and not in the middle."""
    enlarged = ImageOps.invert(Image.fromarray(digit)).resize((280, 280), Image.Resampling.BICUBIC)
    paper = Image.new("L", (500, 400), 255)
    paper.paste(enlarged, (200, 30))
    file = io.BytesIO()
    paper.save(file, format)
    return file.getvalue()


# Drawing


@pytest.mark.parametrize("digit", ["3", "7"])
@pytest.mark.parametrize("by", [by_mouse, by_pen], ids=["mouse", "pen"])
def test_resnet18_knows_what_was_drawn(visit: Visit, by: Draw, digit: str) -> None:
    by(visit, digit)
    visit.expect_settled()
    expect_label(visit, digit)
    for name in RESNETS:
        _, answer = visit.answer(name)
        assert answer["label"] == digit
        assert answer["probabilities"][answer["classes"].index(digit)] > 0.9


@pytest.mark.parametrize("digit", ["3", "7"])
def test_resnet18_knows_what_was_drawn_by_a_finger_on_a_phone(
    visiting: Visiting, served: Running, digit: str
) -> None:
    with visiting(served.http_url, **PHONE) as visit:
        says = visit.model(TEN_DIGITS).locator(".says").bounding_box()
        assert says["y"] + says["height"] <= NARROW["height"], "the answer is out of sight"
        pad = visit.pad()
        pad.scroll_into_view_if_needed()
        before = pad.bounding_box()
        by_finger(visit, digit)
        visit.expect_settled()
        expect_label(visit, digit)
        assert visit.answer(TEN_DIGITS)[1]["label"] == digit
        assert pad.bounding_box() == before, "drawing has moved the page"


def test_models_answer_while_the_pointer_is_still_down(visit: Visit) -> None:
    ((first, *rest),) = on_pad(visit, "7")
    mouse = visit.page.mouse
    mouse.move(*first)
    mouse.down()
    for point in rest:
        mouse.move(*point)
    expect_label(visit, "7")
    mouse.up()


def test_a_browser_without_coalesced_events_draws_too(visit: Visit) -> None:
    visit.page.add_init_script("delete PointerEvent.prototype.getCoalescedEvents")
    visit.page.reload()
    draw(visit, "3")


def test_a_browser_that_is_too_old_is_told_so(visit: Visit) -> None:
    visit.page.add_init_script("delete AbortSignal.any")
    visit.page.reload()
    expect(visit.page.locator("#server")).to_contain_text("too old")


def test_a_stroke_that_was_taken_back_under_the_pointer_does_not_grow_on(visit: Visit) -> None:
    draw(visit, "3")
    by_mouse(visit, "7")
    visit.page.mouse.down()
    for point in on_pad(visit, "7")[0]:
        visit.page.mouse.move(*point)
    for _ in range(2):  # with the button pressed: this stroke, and the 7
        visit.page.keyboard.press("Control+z")
    for point in on_pad(visit, "7")[0]:
        visit.page.mouse.move(*point)
    visit.page.mouse.up()
    visit.expect_settled()
    expect_label(visit, "3")


def test_a_digit_that_is_cleared_before_its_answer_has_none(visit: Visit) -> None:
    draw(visit, "3")
    visit.page.locator("button#clear").click()
    expect(visit.page.locator("article[data-label]:visible")).to_have_count(0)
    with held(visit) as release:
        by_mouse(visit, "3")
        release.wait()
        with visit.page.expect_event("requestfailed"):  # the page has given it up
            visit.page.locator("button#clear").click()
    expect(visit.page.locator("article[data-label]:visible")).to_have_count(0)
    draw(visit, "7")


@dataclass
class Held:
    """Requests of the page that are not let through yet."""

    visit: Visit
    routes: list[Route]

    def wait(self) -> None:
        """Until there is one."""
        end = time.monotonic() + PATIENCE
        while not self.routes and time.monotonic() < end:
            self.visit.page.wait_for_timeout(10)  # which lets Playwright go on
        assert self.routes


@contextmanager
def held(visit: Visit) -> Iterator[Held]:
    """No picture is answered before the end."""
    found = Held(visit, [])
    visit.page.route("**/v1/classify", lambda route: found.routes.append(route))
    yield found
    visit.page.unroute("**/v1/classify")  # which lets them through


def test_the_ten_digit_model_comes_first_with_all_its_probabilities(visit: Visit) -> None:
    draw(visit, "3")
    shown = visit.page.locator("article[data-model]")
    assert [each.get_attribute("data-model") for each in shown.all()] == list(RESNETS)
    for name in RESNETS:
        answer = visit.answer(name)[1]
        article = visit.model(name)
        assert article.get_attribute("data-version") == answer["version"]
        offered = article.locator("button.truth").all()
        truths = [each.get_attribute("data-truth") for each in offered]
        assert truths == [*answer["classes"], "other"]
        assert re.search(r"\d (ms|µs|s)\b", article.locator(".latency").inner_text())


def test_what_the_models_saw_is_shown_pixel_by_pixel(visit: Visit) -> None:
    draw(visit, "3")
    expected = visit.answer(TEN_DIGITS)[0]["normalised"]
    assert (expected["height"], expected["width"]) == (28, 28)
    shown = visit.page.locator("#normalised").evaluate(PIXELS)
    assert shown == expected["pixels"]


PIXELS = """picture => {
  const canvas = new OffscreenCanvas(28, 28);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, 28, 28);
  return Array.from(context.getImageData(0, 0, 28, 28).data).filter((_, index) => index % 4 == 0);
}"""


# Images


@pytest.mark.parametrize(("digit", "format"), [("3", "PNG"), ("7", "JPEG")])
def test_an_image_that_is_dropped_is_answered(visit: Visit, digit: str, format: str) -> None:
    image = photograph(digit_of_holdout(digit), format)
    given = visit.page.evaluate_handle(DROPPED, [list(image), f"image/{format.lower()}"])
    for kind in ("dragenter", "dragover", "drop"):
        visit.pad().dispatch_event(kind, {"dataTransfer": given})
    expect_label(visit, digit)


DROPPED = """([bytes, type]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(bytes)], "digit", { type }));
  return dropped;
}"""


@pytest.mark.parametrize(("digit", "format"), [("3", "JPEG"), ("7", "PNG")])
def test_an_image_that_is_chosen_is_answered(visit: Visit, digit: str, format: str) -> None:
    image = photograph(digit_of_holdout(digit), format)
    file = {"name": "digit", "mimeType": f"image/{format.lower()}", "buffer": image}
    visit.page.locator("input#file").set_input_files(file)
    expect_label(visit, digit)


def test_a_file_that_is_no_image_is_said_to_be_none(visit: Visit) -> None:
    file = {"name": "digit.png", "mimeType": "image/png", "buffer": b"three"}
    status = visit.page.locator("p#status")
    before = status.inner_text()
    visit.page.locator("input#file").set_input_files(file)
    expect(status).not_to_have_text(before)
    draw(visit, "3")


# Feedback


def test_a_click_that_it_was_right_moves_the_counter_and_the_accuracy_beside_it(
    visit: Visit, served: Running
) -> None:
    draw(visit, "3")
    counted, before = labels(served.metrics_url), quality(served, TEN_DIGITS)
    tell(visit, TEN_DIGITS, "button.right")
    assert labels(served.metrics_url) - counted == Counter({(TEN_DIGITS, "3", "3", "true"): 1})
    after = quality(served, TEN_DIGITS)
    assert after["correct_count"] == before["correct_count"] + 1
    expect_accuracy(visit, TEN_DIGITS, after)


def test_a_click_on_which_digit_it_was_moves_its_cell_of_the_confusion_matrix(
    visit: Visit, served: Running
) -> None:
    draw(visit, "7")
    counted, before = labels(served.metrics_url), quality(served, TEN_DIGITS)
    tell(visit, TEN_DIGITS, 'button.truth[data-truth="1"]')
    assert labels(served.metrics_url) - counted == Counter({(TEN_DIGITS, "1", "7", "false"): 1})
    after = quality(served, TEN_DIGITS)
    assert after["correct_count"] == before["correct_count"]
    assert cells(after)["1", "7"] == cells(before)["1", "7"] + 1
    expect_accuracy(visit, TEN_DIGITS, after)
    for (truth, predicted), count in cells(after).items():
        cell = f'#quality td[data-truth="{truth}"][data-predicted="{predicted}"]'
        expect(visit.page.locator(cell)).to_have_text(str(count))


def cells(told: dict[str, Any]) -> Counter[tuple[str, str]]:
    """The confusion matrix: how often a truth was answered how."""
    return Counter({(c["truth"], c["predicted"]): c["count"] for c in told["confusion"]})


def expect_accuracy(visit: Visit, name: str, told: dict[str, Any]) -> None:
    line = visit.page.locator(f'#quality [data-model="{name}"]')
    expect(line).to_have_attribute("data-count", str(told["feedback_count"]))
    shown = re.search(r"(\d+(?:\.\d)?)%", line.inner_text())
    assert shown, line.inner_text()
    assert float(shown[1]) == pytest.approx(100 * told["accuracy"]["value"], abs=0.11)


def test_what_is_no_class_of_a_model_is_counted_as_other(visit: Visit, served: Running) -> None:
    draw(visit, "3")
    counted = labels(served.metrics_url)
    tell(visit, THREES_OR_SEVENS, 'button.truth[data-truth="other"]')
    expected = Counter({(THREES_OR_SEVENS, "other", "3", "false"): 1})
    assert labels(served.metrics_url) - counted == expected


def test_each_model_is_told_once_of_each_picture(visit: Visit, served: Running) -> None:
    draw(visit, "7")
    counted = labels(served.metrics_url)
    for name in RESNETS:
        tell(visit, name, "button.right")
        visit.model(name).locator("button.right").click(force=True)
    draw(visit, "7")  # the same, twice as thick: another prediction
    for name in RESNETS:
        tell(visit, name, "button.right")
    expected = Counter({(name, "7", "7", "true"): 2 for name in RESNETS})
    assert labels(served.metrics_url) - counted == expected
    sent = [each for each in visit.addresses if urlsplit(each).path == "/v1/feedback"]
    assert len(sent) == 2 * len(RESNETS)


def test_a_label_waits_for_the_answer_to_the_picture_as_it_is(visit: Visit) -> None:
    draw(visit, "7")
    before = visit.model(TEN_DIGITS).get_attribute("data-prediction-id")
    with held(visit) as release:
        by_mouse(visit, "7")  # twice as thick
        release.wait()
        visit.model(TEN_DIGITS).locator("button.right").click()
        expect(visit.model(TEN_DIGITS)).to_have_attribute("data-feedback", "sending")
    with visit.page.expect_request("**/v1/feedback") as sent:
        expect(visit.model(TEN_DIGITS)).to_have_attribute("data-feedback", "sent")
    (told,) = sent.value.post_data_json["feedback"]
    assert told["prediction_id"] != before
    assert told["prediction_id"] == visit.model(TEN_DIGITS).get_attribute("data-prediction-id")


def test_a_label_whose_answer_does_not_come_is_said_to_be_lost(visit: Visit) -> None:
    draw(visit, "7")
    with held(visit) as release:
        by_mouse(visit, "7")
        release.wait()
        visit.model(TEN_DIGITS).locator("button.right").click()
        visit.page.locator("button#clear").click()
        expect(visit.page.locator("p#status")).to_contain_text("7 was not sent")


def test_what_was_told_stays_in_words_and_the_matrix_is_not_made_anew(
    visit: Visit, served: Running
) -> None:
    draw(visit, "7")
    tell(visit, TEN_DIGITS, "button.right")
    expect(visit.page.locator("p#status")).to_contain_text("counted as 7")
    sevens = cells(quality(served, TEN_DIGITS))["7", "7"]
    cell = visit.page.locator('#matrix td[data-truth="7"][data-predicted="7"]')
    expect(cell).to_have_text(str(sevens))
    with visit.page.expect_response("**/v1/quality"):
        visit.page.evaluate(MARK)
    with visit.page.expect_response("**/v1/quality"):  # by then the last one has been shown
        pass
    expect(visit.page.locator("#matrix table")).to_have_attribute("data-mark", "here")
    expect(visit.page.locator("p#status")).to_contain_text("counted as 7")


MARK = """document.querySelector("#matrix table").dataset.mark = "here" """


def test_drawing_and_feedback_need_no_pointer(visit: Visit, served: Running) -> None:
    tab_to(visit, visit.pad())
    by_keyboard(visit)
    visit.expect_settled()
    expect_label(visit, "7")
    expect(visit.page.locator("p#status")).to_contain_text(f"{TEN_DIGITS}: 7, ")
    counted = labels(served.metrics_url)
    tab_to(visit, visit.model(THREES_OR_SEVENS).locator("button.right"))
    visit.page.keyboard.press("Enter")
    expect(visit.model(THREES_OR_SEVENS)).to_have_attribute("data-feedback", "sent")
    expected = Counter({(THREES_OR_SEVENS, "7", "7", "true"): 1})
    assert labels(served.metrics_url) - counted == expected


def by_keyboard(visit: Visit) -> None:
    """A 7 by the pen that arrow keys move, in leaps with Shift, and aslant by two at a time."""
    keyboard = visit.page.keyboard
    for key, times in (("Shift+ArrowLeft", 2), ("Space", 1), ("Shift+ArrowRight", 4)):
        for _ in range(times):
            keyboard.press(key)
    keyboard.down("ArrowDown")
    for _ in range(9):
        keyboard.press("ArrowLeft")
    keyboard.up("ArrowDown")
    for _ in range(10):
        keyboard.press("ArrowDown")
    keyboard.press("Space")


def tab_to(visit: Visit, wanted: Locator) -> None:
    """Press Tab until it has the focus; a hundred of it go round any page of ours."""
    visit.page.locator("body").focus()
    for _ in range(100):
        visit.page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"no Tab leads to {wanted}")


# For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_no_barrier_and_nothing_is_wider_than_the_screen(
    visiting: Visiting, served: Running, viewport: dict[str, int], scheme: str
) -> None:
    with visiting(served.http_url, viewport=viewport, color_scheme=scheme) as visit:
        expect(visit.page.locator("#models")).to_contain_text(TEN_DIGITS)
        assert barriers(visit) == []
        assert sideways(visit) == 0
        draw(visit, "3")
        tell(visit, TEN_DIGITS, "button.right")
        assert barriers(visit) == []
        assert sideways(visit) == 0


def barriers(visit: Visit) -> list[str]:
    """What axe's rules find, and where."""
    found = Axe().run(visit.page).response["violations"]
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def sideways(visit: Visit) -> int:
    """By how many pixels the page is wider than the window."""
    measured = visit.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return max(0, int(measured))


def test_the_panel_shows_how_a_model_did_lately(visit: Visit) -> None:
    draw(visit, "3")
    row = visit.page.locator(f'#models [data-name="{TEN_DIGITS}"]')
    expect(row).to_have_attribute("data-state", "ready")
    expect(row).to_contain_text(re.compile(r"Batch size\s*\d"))
    expect(row).to_contain_text(re.compile(r"p50 \d+(\.\d)? (µs|ms|s)"))


def test_the_report_of_a_version_is_a_link_away(visit: Visit) -> None:
    link = visit.page.locator(f'#models a[href*="/{TEN_DIGITS}/versions/"]')
    answer = visit.page.goto(link.evaluate("link => link.href"))
    assert answer.status == 200
    expect(visit.page.locator("body")).to_contain_text(TEN_DIGITS)


# Servers


@pytest.fixture
def linear(tmp_path: Path, digits: Digits) -> Path:
    """A repository with `classifier`, which loads at once."""
    publish_classifier(tmp_path / "models", digits)
    return tmp_path / "models"


def test_what_is_drawn_while_the_server_is_gone_is_answered_when_it_is_back(
    visiting: Visiting, linear: Path
) -> None:
    with ExitStack() as stays:
        with running_server(linear, transport="auto", allow_http=True) as first:
            visit = stays.enter_context(visiting(first.http_url))
            by_mouse(visit, "3")
            expect_answered(visit, "classifier")
        visit.page.locator("button#clear").click()
        by_mouse(visit, "7")
        expect(visit.page.locator("#server")).to_have_attribute("data-state", "away")
        port = first.server.http_port
        with running_server(linear, transport="auto", allow_http=True, http_port=port) as second:
            visit.expect_settled()
            expect_answered(visit, "classifier")
            expect(visit.page.locator("#server")).to_have_attribute("data-state", "ready")
            tell(visit, "classifier", "button.right")
            assert labels(second.metrics_url).total() == 1
        # Of each answer that never came, or came before the model was loaded.
        visit.expect_faults(r"net::ERR_|status of 503")


@pytest.mark.parametrize(
    ("status", "headers", "body", "pause"),
    [
        (429, {"Retry-After": "2"}, '{"error": "no room"}', 2.0),
        (502, {}, "<html>Bad Gateway</html>", 0.0),  # a proxy's
    ],
)
def test_a_picture_that_was_turned_away_is_asked_about_again(
    visit: Visit, status: int, headers: dict[str, str], body: str, pause: float
) -> None:
    refused: list[float] = []

    def refuse(route: Route) -> None:
        refused.append(time.monotonic())
        route.fulfill(status=status, headers=headers, body=body)

    visit.page.route("**/v1/classify", refuse, times=1)
    draw(visit, "7")
    (first,) = refused
    assert time.monotonic() - first >= pause
    visit.expect_faults(str(status))


def expect_answered(visit: Visit, name: str) -> None:
    expect(visit.model(name)).to_have_attribute("data-prediction-id", re.compile("."))


def test_a_model_that_is_not_served_is_shown_with_the_reason(
    visiting: Visiting, linear: Path, digits: Digits
) -> None:
    broken = publish_classifier(linear, digits, "broken")
    with (broken / "model.onnx").open("ab") as file:
        file.write(b"more")
    with (
        running_server(linear, transport="auto", allow_http=True) as running,
        visiting(running.http_url) as visit,
    ):
        shown = visit.page.locator('#models [data-name="broken"]')
        expect(shown).to_contain_text("unavailable")
        expect(shown).to_contain_text("sha256")
        by_mouse(visit, "3")
        expect_answered(visit, "classifier")
        expect(visit.model("broken")).to_have_count(0)


def test_two_workers_behind_tls_answer_and_count_as_one(
    playwright: Playwright, tmp_path: Path
) -> None:
    certificate = authority(tmp_path, "ca").sign("localhost", "DNS:localhost")
    trust = f"--ignore-certificate-errors-spki-list={key_hash(certificate)}"
    with two_workers(certificate) as (url, metrics_url), launched(playwright, trust) as browser:
        for _ in range(4):  # of which each makes connections of its own
            with visit_to(browser, url) as visit:
                draw(visit, "3", TEN_DIGITS)
                tell(visit, TEN_DIGITS, "button.right")
        assert labels(metrics_url) == Counter({(TEN_DIGITS, "3", "3", "true"): 4})


@contextmanager
def two_workers(certificate: Path) -> Iterator[tuple[str, str]]:
    """Addresses of the page and of the metrics, once ResNet18 is served by both."""
    models = ("--model-repository", MODELS, "--load-model", TEN_DIGITS)
    files = ("--tls-certificate", certificate, "--tls-key", certificate.with_suffix(".key"))
    how = ("--model-control-mode", "explicit", "--precision", "fp32", "--workers", "2")
    with server_process(*map(str, (*models, *files, *how))) as process:
        process.wait_for("all 2 workers are ready")
        log = "".join(process.log)
        (port,) = set(re.findall(r"HTTP on https://\S+:(\d+)", log))
        (metrics_url,) = re.findall(r"metrics on (\S+)", log)
        yield f"https://localhost:{port}", metrics_url


def key_hash(certificate: Path) -> str:
    """By which Chromium is told to trust a certificate, whoever signed it."""
    public = subprocess.check_output(
        ["openssl", "x509", "-in", certificate, "-pubkey", "-noout"], text=True
    )
    der = base64.b64decode("".join(public.splitlines()[1:-1]))
    return base64.b64encode(hashlib.sha256(der).digest()).decode()
