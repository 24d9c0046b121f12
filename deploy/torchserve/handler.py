"""TorchServe's handler: `images` in, `probabilities` and `labels` out, as our models have them.

Speaks both protocols that TorchServe has for gRPC. V2 comes as a ModelInferRequest in JSON, and
goes as such a response. Of InferenceAPIsService, the input `images` is the pixels of N images, and
the prediction their probabilities as raw floats. TorchServe knows no error of one request in a
batch: what is no image fails all of its batch. Packed into archives, so it imports nothing of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PIXELS = (28, 28)

Answer = bytes | dict[str, object]


class Handler:
    """Found by TorchServe as the only class of this file; one worker process holds one."""

    def initialize(self, context: Any) -> None:
        """Load the archive's TorchScript, for one thread: more workers use more cores."""
        torch.set_num_threads(1)
        directory = Path(context.system_properties["model_dir"])
        self._model = torch.jit.load(directory / context.manifest["model"]["serializedFile"]).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Answer]:
        """One answer per request of the batch."""
        parts = _parts(data)
        with torch.inference_mode():
            outputs = self._model(torch.from_numpy(np.concatenate(parts)))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        probabilities, labels = (np.split(output.numpy(), ends) for output in outputs)
        model = context.manifest["model"]
        return [
            _v2(row["body"], model, *answer) if "body" in row else answer[0].tobytes()
            for row, answer in zip(data, zip(probabilities, labels, strict=True), strict=True)
        ]


def _parts(data: list[dict[str, Any]]) -> list[NDArray[np.uint8]]:
    """The images of each request; TorchServe's error where one has none."""
    try:
        return [_images(row) for row in data]
    except (ValueError, OverflowError, KeyError, TypeError) as error:
        from ts.utils.util import PredictionException  # only where this file is packed for

        # INVALID_ARGUMENT alone; among others, who are not at fault, UNAVAILABLE: to be repeated.
        code = 400 if len(data) == 1 else 503
        raise PredictionException(f"no images: {error!r}", code) from None


def _images(row: dict[str, Any]) -> NDArray[np.uint8]:
    """(N, 28, 28); ValueError, OverflowError, KeyError or TypeError for what is none."""
    if "body" not in row:
        return np.frombuffer(row["images"], np.uint8).reshape(-1, *PIXELS)
    (tensor,) = row["body"]["inputs"]
    if (tensor["name"], tensor["datatype"]) != ("images", "UINT8"):
        raise ValueError(f"expected images of UINT8, got {tensor['name']} of {tensor['datatype']}")
    images = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
    if images.shape[1:] != PIXELS:
        raise ValueError(f"expected images of shape [N, 28, 28], got {tensor['shape']}")
    return images


def _v2(
    request: dict[str, Any],
    model: dict[str, str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> dict[str, object]:
    """What TorchServe makes a ModelInferResponse of."""
    return {
        "id": request["id"],
        "model_name": model["modelName"],
        "model_version": model["modelVersion"],
        "outputs": [
            _tensor("probabilities", "FP32", probabilities),
            _tensor("labels", "INT64", labels),
        ],
    }


def _tensor(name: str, datatype: str, values: NDArray[Any]) -> dict[str, object]:
    data = values.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}
