"""``python -m deploy.grafana`` writes dashboards/, which a test checks is up to date."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana import quality, serving
from deploy.grafana.panels import Json

DIRECTORY = Path(__file__).parent / "dashboards"
BOARDS = {"serving.json": serving.board, "quality.json": quality.board}


def text(board: Json) -> str:
    """As it is committed."""
    return json.dumps(board, indent=2) + "\n"


def main() -> None:
    """Write them."""
    for file, board in BOARDS.items():
        (DIRECTORY / file).write_text(text(board()), encoding="utf-8")


if __name__ == "__main__":
    main()
