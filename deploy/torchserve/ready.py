"""``python -m deploy.torchserve.ready``: whether a worker of every archived model is READY.

Asks the management API: TorchServe's /ping says Healthy while workers crash and start again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from deploy.torchserve.settings import STORE, setting

TIMEOUT = 3.0  # seconds for one answer


def not_ready(store: Path) -> list[str]:
    """The models of the store that no READY worker serves, and why."""
    names = sorted(archive.stem for archive in store.glob("*.mar"))
    found = {name: fault for name in names if (fault := _fault(name))}
    return [f"{name}: {fault}" for name, fault in found.items()] if names else ["no archive"]


def _fault(name: str) -> str:
    address = setting("management_address")
    # Directly: it is on this machine, also where http_proxy names a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/models/{name}", timeout=TIMEOUT) as answer:
            versions = json.load(answer)
    except (OSError, ValueError) as error:  # URLError is an OSError
        return str(error)
    states = [worker["status"] for version in versions for worker in version["workers"]]
    return "" if "READY" in states else f"workers: {', '.join(states) or 'none'}"


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all are served, at once or within --wait; else 1 with the reasons."""
    parser = argparse.ArgumentParser(prog="python -m deploy.torchserve.ready", description=__doc__)
    parser.add_argument("--model-store", type=Path, default=STORE)
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    end = time.monotonic() + arguments.wait
    while faults := not_ready(arguments.model_store):
        if time.monotonic() >= end:
            print(*faults, sep="\n", file=sys.stderr)
            return 1
        time.sleep(0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
