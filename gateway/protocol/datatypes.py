"""Open Inference Protocol datatypes and their numpy counterparts (protocol section "Tensor Data Types")."""

from __future__ import annotations

from typing import Any

import numpy as np

BYTES = "BYTES"
MAX_DIMENSIONS = 64
"""What numpy can hold."""

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    BYTES: np.dtype(object),
}

BF16 = "BF16"
BF16_DTYPE = np.dtype([("bf16", "<u2")])
"""Numpy has no bfloat16: the bits, under a dtype of their own, so that nothing takes them for a UINT16."""

RAW_DTYPES: dict[str, np.dtype[Any]] = NUMPY_DTYPES | {BF16: BF16_DTYPE}
"""What raw bytes can say; BF16 has no JSON form."""

DATATYPES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in RAW_DTYPES.items()}
