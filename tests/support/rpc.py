"""The gRPC port: in this process or of a running gateway, and messages for it."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferInput, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from gateway.api.grpc.listener import GrpcListener
from gateway.api.grpc.service import InferenceService
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.serving.inventory import Inventory
from gateway.types import Array
from tests.support.planes import Plane
from tests.support.running import GatewayProcess, metric
from tests.support.waiting import wait_until

ADDRESS = re.compile(r"grpc +(\S+:\d+)")


def address_of(gateway: GatewayProcess) -> str:
    """Where the gateway says its gRPC port is."""
    matched = ADDRESS.search(gateway.stdout)
    assert matched is not None
    return matched[1]


@asynccontextmanager
async def serving(
    plane: Plane, *, control_public: bool = False, max_message_bytes: int = 2**20, shutdown_timeout: float = 5.0
) -> AsyncIterator[str]:
    """The gRPC port over a plane; its address."""
    inventory = Inventory(plane.plane, plane.routes, plane.loader)
    service = InferenceService(plane.plane, inventory, plane.control, plane.metrics, control_public=control_public)
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        listener = GrpcListener(
            service, address, max_message_bytes=max_message_bytes, shutdown_timeout=shutdown_timeout
        )
        async with listener.running():
            yield address


def stub(channel: Any) -> Any:
    """Of the whole service."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def raw_input(array: Array, datatype: str, name: str = "x") -> InferInput:
    """As `tritonclient` sends it: raw."""
    tensor = InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def typed_contents(array: Array, datatype: str) -> dict[str, list[Any]]:
    """`InferTensorContents` for an array."""
    if datatype == BYTES:
        return {"bytes_contents": [text.encode() for text in array.ravel()]}
    names = {"b": "bool", "f": "fp32" if datatype == "FP32" else "fp64"}
    width = "64" if datatype.endswith("64") else ""
    names |= {"i": f"int{width}", "u": f"uint{width}"}
    return {f"{names[NUMPY_DTYPES[datatype].kind]}_contents": array.ravel().tolist()}


def typed_request(model: str, array: Array, datatype: str, name: str = "x", **more: Any) -> pb.ModelInferRequest:
    """A request with typed contents."""
    contents = typed_contents(array, datatype)
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape), "contents": contents}
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], **more)


def raw_request(
    model: str, data: bytes, shape: list[int], datatype: str = "FP32", name: str = "x", **more: Any
) -> pb.ModelInferRequest:
    """A request with raw contents, sound or not."""
    tensor = {"name": name, "datatype": datatype, "shape": shape}
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[data], **more)


def floats(*values: float) -> Array:
    """One row, FP32."""
    return np.array([values], np.float32)


def turns_request(count: int, rows: int = 1) -> pb.ModelInferRequest:
    """Keeps the model `busy` for some 20 microseconds a turn."""
    return typed_request("busy", np.full((rows, 1), count, np.int64), "INT64", "turns")


def refused(call: Callable[[], Any]) -> grpc.Call:
    """The end of an RPC that must fail: `code()`, `details()`, `trailing_metadata()`."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return cast("grpc.Call", caught.value)


@contextmanager
def occupied(service: Any, gateway: GatewayProcess, *, queued: int = 1) -> Iterator[None]:
    """The model `busy` runs inside, with one request of one row in its queue, or none; they are answered at the end."""
    occupying = service.ModelInfer.future(turns_request(50_000))
    while True:
        # RPCs overtake each other: one that is answered at once came before the long one.
        waiting = service.ModelInfer.future(turns_request(1))
        wait_until(partial(_is_settled, waiting, gateway))
        if not waiting.done():
            break
    if not queued:
        waiting.cancel()
        wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") == 0)
    assert not occupying.done()
    yield
    for call in (occupying, waiting) if queued else (occupying,):
        assert call.result().outputs[0].shape == [1, 1]


def _is_settled(call: Any, gateway: GatewayProcess) -> bool:
    """Answered, or waiting in the queue of the model `busy`."""
    return bool(call.done()) or metric(gateway, "gateway_queue_rows", model="busy") == 1
