"""The common binary request: what its JSON says is worked out once, the next with the same JSON is numpy alone.

As in `fast_json.py`, whatever is not common goes the precise way, which also says what is wrong with it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import orjson

from gateway.errors import GatewayError
from gateway.protocol.classification import check_classes
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.protocol.json_codec import BINARY_OUTPUT, BINARY_SIZE, decode_request
from gateway.protocol.raw_tensor import RawParts, decode_raw
from gateway.protocol.signature import check_request
from gateway.types import Array, InferenceRequest, Signature

MAX_PLANS = 256
"""JSON texts remembered for each signature; when they are more, all are forgotten and learned again."""
MAX_PLAN_BYTES = 1024
"""A longer JSON text is not remembered."""
AS_IT_IS = "iuf"
"""Kinds of numpy dtypes that any bytes are values of."""


class PlannedTensor(NamedTuple):
    """Where the bytes of an input are, and what they make."""

    name: str
    datatype: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    size: int
    start: int
    """Behind the JSON."""
    stop: int
    path: str

    def read(self, body: bytes | memoryview, begin: int) -> Array:
        """The tensor, without a copy where the bytes lie aligned. `begin` is the end of the JSON."""
        if self.dtype.kind not in AS_IT_IS:
            part = memoryview(body)[begin + self.start : begin + self.stop]
            return decode_raw(self.datatype, self.shape, part, self.path)
        array = np.frombuffer(body, self.dtype, self.size, begin + self.start)
        return (array if array.flags.aligned else array.copy()).reshape(self.shape)


class Plan(NamedTuple):
    """What a JSON text asks for, but for the values."""

    request: InferenceRequest
    """Names no version; one object serves for all requests with this JSON that name none either."""
    tensors: tuple[PlannedTensor, ...]
    size: int
    """Of all tensors together, in bytes."""


class BinaryDecoder:
    """Decodes bodies of JSON and bytes for one signature."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._plans: dict[bytes, Plan] = {}

    def decode(
        self, body: bytes | memoryview, length: int, model: str, version: str | None, headers: Mapping[str, str]
    ) -> tuple[InferenceRequest, dict[str, Array]]:
        """The request and its inputs; `length` bytes of the body are JSON. Raises as `decode_request` does."""
        head = bytes(body[:length])
        plan = self._plans.get(head)
        if plan is None or len(body) - length != plan.size:
            request = decode_request(head, model, version, headers, RawParts(memoryview(body)[length:]))
            if plan is None and length <= MAX_PLAN_BYTES and request.id is None:
                self._learn(head, request)
            return request, request.inputs
        inputs = {tensor.name: tensor.read(body, length) for tensor in plan.tensors}
        return plan.request if version is None else replace(plan.request, version=version), inputs

    def _learn(self, head: bytes, request: InferenceRequest) -> None:
        """Remember a request that fits the signature, whose inputs are all behind its JSON, and that wants no more."""
        if not request.parameters.keys() <= {BINARY_OUTPUT}:
            return
        tensors: list[PlannedTensor] = []
        start = 0
        for index, item in enumerate(orjson.loads(head)["inputs"]):
            size = (item.get("parameters") or {}).get(BINARY_SIZE)
            array = request.inputs[item["name"]]
            dtype = NUMPY_DTYPES.get(item["datatype"])
            if size is None or dtype is None or not array.size:
                return
            extent = (array.shape, array.size, start, start + size)
            tensors.append(PlannedTensor(item["name"], item["datatype"], dtype, *extent, f"inputs[{index}]"))
            start += size
        try:
            rows = check_request(request.inputs, request.outputs, self._signature, sys.maxsize)
            check_classes(request.outputs, request.forms, self._signature)
        except GatewayError:
            return
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        common = replace(request, version=None, inputs={}, parameters={}, headers={}, fits=self._signature, rows=rows)
        self._plans[head] = Plan(common, tuple(tensors), start)
