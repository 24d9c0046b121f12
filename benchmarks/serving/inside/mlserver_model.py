"""MLServer has no ONNX runtime of its own: this custom one runs the file named in its settings."""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):  # type: ignore[misc]
    """One ONNX Runtime session with one thread; MLServer's adaptive batching calls `predict`."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run all rows of a merged request at once."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        names = ("probabilities", "labels")
        outputs = self._session.run(list(names), {"images": images})
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name, array)
                for name, array in zip(names, outputs, strict=True)
            ],
        )
