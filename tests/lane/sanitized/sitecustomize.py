"""Python imports this at its start: `serving.lane.native` is then the file that LANE_MODULE names.

So that tests, and the servers that they start, run over a module that was built with a sanitizer.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class Sanitized:
    """Finds that one module, before those find it who look beside its package."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where the module is; nothing for all others."""
        if name != "serving.lane.native":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["LANE_MODULE"])


sys.meta_path.insert(0, Sanitized)
