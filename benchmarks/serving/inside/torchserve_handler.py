"""TorchServe's handler: rows of 28x28 raw pixels in, their probabilities as raw floats out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

PIXELS = (28, 28)


class Handler:
    """Found by TorchServe as the only class of this file; one worker process holds one."""

    def initialize(self, context: Any) -> None:
        """Load the archive's TorchScript, for one thread."""
        torch.set_num_threads(1)
        directory = Path(context.system_properties["model_dir"])
        self._model = torch.jit.load(directory / context.manifest["model"]["serializedFile"])
        self._model.eval()
        torch.jit.optimize_for_inference(self._model)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One answer per request of the batch."""
        parts = [np.frombuffer(row["data"], np.uint8).reshape(-1, *PIXELS) for row in data]
        images = torch.from_numpy(np.concatenate(parts))
        with torch.inference_mode():
            probabilities = self._model(images)[0].numpy()
        answers, start = [], 0
        for part in parts:
            answers.append(probabilities[start : start + len(part)].tobytes())
            start += len(part)
        return answers
