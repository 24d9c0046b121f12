"""``python -m deploy.torchserve``: pack what is published, and become TorchServe serving it.

Its own launcher would stay as a parent that hears SIGTERM and does not pass it on; so this process
becomes the Java one instead. Runs in TorchServe's environment. What is published later is served
after a restart.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.torchserve.archive import pack_all, parser
from deploy.torchserve.settings import CONFIG, LOGGING, java
from model_repository import RepositoryError


def java_command(store: Path) -> list[str]:
    """As TorchServe's launcher has it. OSError without Java."""
    program = java()
    if program is None:
        raise FileNotFoundError("there is no java; TorchServe needs version 17")
    packages = Path(sysconfig.get_path("purelib"))
    return [
        program,
        f"-Dmodel_server_home={packages}",
        f"-Dlog4j.configurationFile={LOGGING.resolve().as_uri()}",
        f"-Djava.io.tmpdir={tempfile.gettempdir()}",
        *("-cp", str(packages / "ts" / "frontend" / "*")),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable),
        *("-f", str(CONFIG), "-s", str(store), "-ncs"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Does not return where it starts; 1 with the reason where it cannot."""
    arguments = parser("python -m deploy.torchserve", __doc__).parse_args(argv)
    try:
        command = java_command(arguments.model_store)
        pack_all(arguments.model_repository, arguments.model_store, arguments.models)
        # Without a shell, as it should be; of the command, only paths are the operator's.
        os.execv(command[0], command)  # nosec B606
    except (RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
