"""For Triton's Python backend: all requests of one execution in one ONNX Runtime run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Found by this name. Reads the file named by the parameter `onnx` of config.pbtxt."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file with one thread."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            config["parameters"]["onnx"]["string_value"],
            options,
            providers=["CPUExecutionProvider"],
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        inputs = [triton.get_input_tensor_by_name(r, "images").as_numpy() for r in requests]
        images = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        outputs = self._session.run(["probabilities", "labels"], {"images": images})
        responses, start = [], 0
        for each in inputs:
            rows = slice(start, start := start + len(each))
            tensors = [
                triton.Tensor("probabilities", outputs[0][rows]),
                triton.Tensor("labels", outputs[1][rows]),
            ]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses
