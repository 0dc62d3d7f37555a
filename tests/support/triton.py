"""NVIDIA's own client, as its users have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton

from gateway.types import Array


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A client of the server at `url`."""
    with triton.InferenceServerClient(urlsplit(url).netloc) as client:
        yield client


def tensor(array: Array, datatype: str, name: str = "x") -> Any:
    """An input as JSON."""
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=False)
    return made


def outputs(*names: str) -> Sequence[Any]:
    """Requested outputs as JSON."""
    return [triton.InferRequestedOutput(name, binary_data=False) for name in names]


def rows(*values: float) -> Any:
    """An input `x` with three equal columns."""
    return tensor(np.repeat(np.array(values, np.float32), 3).reshape(-1, 3), "FP32")
