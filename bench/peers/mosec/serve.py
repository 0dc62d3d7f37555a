"""Mosec: a Rust front, one Python worker, dynamic batching. Its body is `{"x": row}`, its answer `{"y": row}`.

Batches of up to 64 wait `WAIT_MS`, which Mosec counts in whole milliseconds: longer than a batch of this model runs.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Inference(Worker):
    """One session; `forward` gets a list of bodies."""

    def __init__(self) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        source = self._session.get_inputs()[0]
        self._input = source.name
        self._dtype = np.int32 if source.type == "tensor(int32)" else np.float32

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers in the order of the bodies."""
        rows = np.array([body["x"] for body in data], self._dtype)
        answers = self._session.run(None, {self._input: rows})[0]
        return [{"y": values} for values in answers.tolist()]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=64, max_wait_time=int(os.environ["WAIT_MS"]))
    server.run()
