"""Requests to the models of the shared gateway, and what an error must look like."""

from __future__ import annotations

from typing import Any

import httpx


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    """One input; without a shape, one row of the data."""
    return {"name": name, "shape": shape or [1, len(data)], "datatype": datatype, "data": data}


def inputs(*tensors: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request body."""
    return {"inputs": list(tensors), **more}


AFFINE = inputs(tensor("x", "FP32", [1, 2, 3]))


def turns(count: int, rows: int = 1) -> dict[str, Any]:
    """Keeps the model `busy` for some 20 microseconds each."""
    return inputs(tensor("turns", "INT64", [count] * rows, [rows, 1]))


def classify(value: float) -> dict[str, Any]:
    """One row for the model `classifier`: class 1 if positive."""
    return inputs(tensor("x", "FP32", [value]))


def outputs_of(response: httpx.Response) -> dict[str, list[Any]]:
    """Data by output name."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def error_of(response: httpx.Response, status: int) -> str:
    """The message of a refusal; fails unless it is one as the protocol wants it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document.keys() == {"error"}
    assert isinstance(document["error"], str)
    assert document["error"]
    return str(document["error"])
