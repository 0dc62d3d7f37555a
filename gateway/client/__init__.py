"""A client of the gateway for Python, sync and async, over httpx.

It needs the base installation only: no ONNX Runtime, no store, no server is imported. What to send, what an answer
means and whether to try again are pure functions (`calls.py`, `codec.py`, `retry.py`); the two classes of `clients.py`
do what those say.
"""

from gateway.client.calls import ModelMetadata, TensorMetadata
from gateway.client.clients import AsyncClient, Client
from gateway.client.codec import Result
from gateway.client.errors import (
    ConnectionLost,
    InferenceError,
    InvalidResponse,
    ModelNotFound,
    RequestRefused,
    ServerFailed,
    TimedOut,
    TransportError,
    Unavailable,
    Unreachable,
)

__all__ = [
    "AsyncClient",
    "Client",
    "ConnectionLost",
    "InferenceError",
    "InvalidResponse",
    "ModelMetadata",
    "ModelNotFound",
    "RequestRefused",
    "Result",
    "ServerFailed",
    "TensorMetadata",
    "TimedOut",
    "TransportError",
    "Unavailable",
    "Unreachable",
]
