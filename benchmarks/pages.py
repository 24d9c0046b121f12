"""Pages of which a part is written by a program, between two marks."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end -->"


def filled_in(page: str, start: str, text: str) -> str:
    """The page with the text between its marks."""
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(END)
    return f"{before}{start}\n{text}{END}{after}"


def fill_in(path: Path, start: str, text: str) -> None:
    """Write the text between the marks of the page that lies there."""
    path.write_text(filled_in(path.read_text(encoding="utf-8"), start, text), encoding="utf-8")
