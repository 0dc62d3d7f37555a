"""Ray Serve with `@serve.batch`. Its body is `{"x": row}`, its answer `{"y": row}`."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
class Inference:
    """One replica, one session."""

    def __init__(self, model: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        source = self._session.get_inputs()[0]
        self._input = source.name
        self._dtype = np.int32 if source.type == "tensor(int32)" else np.float32

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def infer(self, rows: list[Any]) -> list[Any]:
        """One run for the rows that came together."""
        stacked = np.array(rows, self._dtype)
        return list(self._session.run(None, {self._input: stacked})[0].tolist())

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One row."""
        return {"y": await self.infer((await request.json())["x"])}


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Inference.bind(os.path.abspath(os.environ["MODEL"]), int(os.environ["THREADS"])))  # noqa: PTH100
    print("ready", flush=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        serve.shutdown()
        ray.shutdown()
