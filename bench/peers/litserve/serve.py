"""LitServe with batching. Its body is `{"x": row}`, its answer `{"y": row}`."""

import os
from typing import Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Request


class InferenceApi(litserve.LitAPI):
    """One session in LitServe's worker process."""

    def setup(self, device: str) -> None:
        """Load the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        source = self._session.get_inputs()[0]
        self._input = source.name
        self._dtype = np.int32 if source.type == "tensor(int32)" else np.float32

    def decode_request(self, request: Request) -> Any:
        """One row. The annotation, read at run time, is what asks LitServe for the parsed JSON."""
        return np.array(request["x"], self._dtype)

    def batch(self, inputs: list[Any]) -> Any:
        """Rows to a batch."""
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        """One run."""
        return self._session.run(None, {self._input: x})[0]

    def unbatch(self, output: Any) -> Any:
        """A batch to rows."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """One row."""
        return {"y": output.tolist()}


if __name__ == "__main__":
    # With a time-out of 0 its worker spins on a whole core, also when idle.
    api = InferenceApi(max_batch_size=64, batch_timeout=int(os.environ["WAIT_MS"]) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
