"""ONNX Runtime in MLServer, which has no runtime for it of its own."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """The Open Inference Protocol is MLServer's own: it decodes, batches and encodes."""

    async def load(self) -> bool:
        """Load the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        source = self._session.get_inputs()[0]
        self._input = source.name
        self._dtype = np.int32 if source.type == "tensor(int32)" else np.float32
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One run for the rows that came together."""
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(self._dtype, copy=False)
        answers = self._session.run(None, {self._input: rows})[0]
        output = NumpyCodec.encode_output("y", answers)
        return InferenceResponse(model_name=self.name, outputs=[output])
