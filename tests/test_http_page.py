"""The page's files, as they are served, and what holds for all of them; tests/web has a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from conftest import running_server

from serving.http import page
from serving.http.guard import CONTENT_SECURITY_POLICY

FILES = sorted(page.STATIC.iterdir())
MODULES = [path for path in FILES if path.suffix == ".js"]
INDEX = (page.STATIC / page.INDEX).read_text()
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}


@pytest.fixture(scope="module")
def http(repository: Path) -> Iterator[httpx.Client]:
    # Files are the same over either transport.
    with (
        running_server(repository, allow_http=True, transport="grpcio") as running,
        httpx.Client(base_url=running.http_url) as found,
    ):
        yield found


class Page(HTMLParser):
    """Which elements there are: their tags, attributes and what is inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(INDEX)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip() and self.elements and self.elements[-1][0] in ("script", "style"):
            self.inline.append(data)

    def all(self, attribute: str) -> list[str]:
        """The values of an attribute, wherever there is one."""
        return [value for _, each in self.elements if (value := each.get(attribute)) is not None]


def test_the_page_is_at_the_root(http: httpx.Client) -> None:
    answer = http.get("/")
    assert (answer.status_code, answer.text) == (200, INDEX)
    assert answer.headers["content-type"] == TYPES["index.html"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_as_what_it_is(http: httpx.Client, path: Path) -> None:
    answer = http.get(f"/static/{path.name}")
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert answer.headers["content-type"] == page.CONTENT_TYPES[path.suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("name", "content_type"), TYPES.items())
def test_files_have_the_types_that_browsers_ask_for(
    http: httpx.Client, name: str, content_type: str
) -> None:
    assert http.head(f"/static/{name}").headers["content-type"] == content_type


@pytest.mark.parametrize("path", ["/", "/static/main.js"])
def test_a_file_is_asked_for_again_each_time_and_sent_only_where_it_changed(
    http: httpx.Client, path: str
) -> None:
    first = http.get(path)
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = http.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    changed = http.get(path, headers={"If-None-Match": '"of another version"'})
    assert (changed.status_code, changed.content) == (200, first.content)


def test_files_that_differ_have_tags_that_differ(http: httpx.Client) -> None:
    tags = {http.head(f"/static/{path.name}").headers["etag"] for path in FILES}
    assert len(tags) == len(FILES)


@pytest.mark.parametrize(
    "path", ["missing.js", "", "../page.py", "%2e%2e/page.py", "..%2fpage.py", "main.js%00"]
)
def test_what_is_not_there_is_not_found(http: httpx.Client, path: str) -> None:
    answer = http.get(f"/static/{path}", follow_redirects=True)
    assert answer.status_code == 404
    assert "Not Found" in answer.json()["error"]


def test_the_page_cannot_be_posted_to(http: httpx.Client) -> None:
    assert http.post("/").status_code == 405


def test_the_policy_lets_nothing_run_but_the_servers_own_files(http: httpx.Client) -> None:
    for path in ("/", "/static/main.js", "/static/missing.js"):
        assert http.get(path).headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "//" not in CONTENT_SECURITY_POLICY
    directives = CONTENT_SECURITY_POLICY.split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(directives)


def test_the_page_has_no_inline_script_and_no_inline_style() -> None:
    found = Page()
    assert found.inline == []
    assert found.all("style") == []
    attributes = {name for _, each in found.elements for name in each}
    assert {name for name in attributes if name.startswith("on")} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    # The name of SVG's language looks like an address, and is none.
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:\w+:)?//[\w.]+\.\w+", text) == []
    assert "@import" not in text


def test_what_the_page_loads_is_there() -> None:
    named = [*Page().all("src"), *Page().all("href")]
    assert named
    assert {name for name in named if not (page.STATIC.parent / name).is_file()} == set()


def test_each_id_that_a_module_asks_for_is_on_the_page_once() -> None:
    ids = Page().all("id")
    asked = {name for path in MODULES for name in re.findall(r'byId\("(.*?)"\)', path.read_text())}
    hooks = {"pad", "file", "clear", "normalised", "answers", "models", "quality", "status"}
    assert hooks - set(ids) == set()
    assert asked - set(ids) == set()
    assert len(ids) == len(set(ids))


def test_what_describes_labels_or_names_an_element_is_on_the_page() -> None:
    found = Page()
    meant = [*found.all("for"), *found.all("aria-labelledby"), *found.all("aria-describedby")]
    assert set(meant) - set(found.all("id")) == set()


def test_modules_import_each_other_and_nothing_else() -> None:
    names = {path.name for path in MODULES}
    needed = {"main.js"}
    for path in MODULES:
        text = path.read_text()
        imported = re.findall(r'^import .*? from "(.*?)";', text, re.MULTILINE | re.DOTALL)
        assert {f"./{name}" for name in names} >= set(imported), path.name
        assert len(imported) == len(re.findall(r"^import\b", text, re.MULTILINE)), path.name
        needed |= {name.removeprefix("./") for name in imported}
    assert needed == names, "modules that nothing imports"


def test_modules_say_what_they_own() -> None:
    assert [path.name for path in MODULES if not path.read_text().startswith("/**")] == []


def test_modules_never_take_text_for_html() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert [path.name for path in MODULES if re.search(forbidden, path.read_text())] == []
