"""Pages of which a part is written by a program, between two marks."""

from __future__ import annotations

END = "<!-- end -->"


def filled_in(page: str, start: str, text: str) -> str:
    """The page with the text between its marks."""
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(END)
    return f"{before}{start}\n{text}{END}{after}"
