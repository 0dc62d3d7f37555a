"""Our own bare prototype: decode, batch, run, encode from uvicorn's parser callbacks, and nothing else.

No routing, ids, metrics, limits, checks or errors: what the product costs beyond this is what its features cost.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Batcher:
    """Rows of one turn of the loop, run together on the loop itself."""

    def __init__(self, model: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        source = self._session.get_inputs()[0]
        self._input = source.name
        self._outputs = [self._session.get_outputs()[0].name]
        self._dtype = np.int32 if source.type == "tensor(int32)" else np.float32
        self._waiting: list[tuple[Any, asyncio.Transport]] = []

    def submit(self, body: bytes, transport: asyncio.Transport) -> None:
        """Decode and queue; the first of a batch schedules its run."""
        tensor = orjson.loads(body)["inputs"][0]
        rows = np.array(tensor["data"], self._dtype).reshape(tensor["shape"])
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append((rows, transport))

    def _run(self) -> None:
        works, self._waiting = self._waiting, []
        stacked = works[0][0] if len(works) == 1 else np.concatenate([rows for rows, _ in works])
        answers = self._session.run(self._outputs, {self._input: stacked})[0]
        start = 0
        for rows, transport in works:
            stop = start + len(rows)
            transport.write(_answer(self._outputs[0], answers[start:stop]))
            start = stop


def _answer(name: str, values: Any) -> bytes:
    output = {"name": name, "shape": values.shape, "datatype": "FP32", "data": values.ravel()}
    content = orjson.dumps(
        {"model_name": "m", "model_version": "1", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return HEAD % (len(content), content)


class PrototypeProtocol(HttpToolsProtocol):
    """Answers every request as a prediction, whatever its path says."""

    batcher: Batcher
    # The parser leaves out callbacks that are not there.
    on_url = None  # type: ignore[assignment]
    on_header = None  # type: ignore[assignment]
    on_headers_complete = None  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        """One request at a time on a connection: the load generators do not pipeline."""
        self._body: list[bytes] = []

    def on_body(self, body: bytes) -> None:
        """One piece, or several."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The whole body is here."""
        self.batcher.submit(self._body[0] if len(self._body) == 1 else b"".join(self._body), self.transport)


async def unused(scope: Any, receive: Any, send: Any) -> None:
    """Uvicorn wants an application; the protocol never calls it."""


if __name__ == "__main__":
    PrototypeProtocol.batcher = Batcher(os.environ["MODEL"], int(os.environ["THREADS"]))
    uvicorn.run(
        unused,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http=PrototypeProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
