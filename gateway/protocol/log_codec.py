"""The request log's wire format: one Redis stream entry holds the sampled rows of one micro-batch, columnar.

An entry has two fields. `meta` is JSON that a person can read with `redis-cli`; `data` is the numeric columns back to
back, little-endian and row-major, in the order in which `meta.columns` names them. String columns stand in `meta`.

What a reader may overlook, as `meta.traces`, `meta.routing` and `meta.timing`, is left out where there is nothing to
say, and needs no new schema: older collectors go on reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from gateway.protocol.datatypes import BYTES, DATATYPES, NUMPY_DTYPES
from gateway.types import Array, JsonObject, ModelKey, string_array

SCHEMA = 1
META = b"meta"
DATA = b"data"


class MalformedEntry(ValueError):
    """A stream entry that is not what `encode` writes."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """Whose rows these are: `rows` consecutive rows of the entry's columns."""

    prediction_id: str
    variant: str
    revision: int
    rows: int
    trace_id: str = ""
    """In hex; empty if the request was not traced."""
    units: str = ""
    """What the buckets stand for: under equal `units` the same caller has the same bucket."""
    bucket: int | None = None
    holdout_bucket: int | None = None
    rule: int | None = None
    """These three as the route's decision had them (`routing/route.py`)."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Sampled rows of one micro-batch; every column's axis 0 is the row."""

    key: ModelKey
    logged_at: float
    """Unix time in seconds."""
    rate: float
    """Probability with which each request was sampled."""
    requests: tuple[LoggedRequest, ...]
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    timing: JsonObject | None = None
    """Where the time went, in seconds: `run` and `encode` of the batch, `decode` and `queue` of each request; besides,
    `batch_rows` and why the batch left (`batch_left`)."""

    @property
    def rows(self) -> int:
        """Rows of all requests together."""
        return sum(request.rows for request in self.requests)


def encode(entry: LogEntry) -> dict[bytes, bytes]:
    """The fields of the stream entry."""
    columns: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for kind, tensors in (("input", entry.inputs), ("output", entry.outputs)):
        for name, array in tensors.items():
            column = {"kind": kind, "name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape}
            if column["datatype"] == BYTES:
                column["values"] = array.ravel().tolist()
            else:
                blobs.append(array.tobytes())
            columns.append(column)
    meta = {
        "schema": SCHEMA,
        "model": entry.key.name,
        "version": entry.key.version,
        "logged_at": entry.logged_at,
        "rate": entry.rate,
        "requests": [[r.prediction_id, r.variant, r.revision, r.rows] for r in entry.requests],
        "columns": columns,
    }
    traces = [request.trace_id for request in entry.requests]
    if any(traces):
        meta["traces"] = traces
    routing = _routing(entry.requests)
    if routing:
        meta["routing"] = routing
    if entry.timing is not None:
        meta["timing"] = entry.timing
    return {META: orjson.dumps(meta), DATA: b"".join(blobs)}


def decode(fields: Mapping[bytes, bytes]) -> LogEntry:
    """The inverse of `encode`. Raises `MalformedEntry` on anything else, whatever it is."""
    try:
        meta = orjson.loads(fields[META])
        if meta["schema"] != SCHEMA:
            raise MalformedEntry(f"log schema {meta['schema']!r}, expected {SCHEMA}")
        entry = LogEntry(
            key=ModelKey(str(meta["model"]), str(meta["version"])),
            logged_at=float(meta["logged_at"]),
            rate=float(meta["rate"]),
            requests=_requests(meta),
            timing=meta.get("timing"),
            **_columns(meta["columns"], fields[DATA]),
        )
    except MalformedEntry:
        raise
    except Exception as error:
        raise MalformedEntry(f"{type(error).__name__}: {error}") from error
    for name, array in (*entry.inputs.items(), *entry.outputs.items()):
        if array.shape[:1] != (entry.rows,):
            raise MalformedEntry(f"column {name!r} has shape {list(array.shape)}, the requests have {entry.rows} rows")
    return entry


def decode_requests(meta: bytes) -> tuple[float, tuple[LoggedRequest, ...]]:
    """`logged_at` and the requests out of the field `meta` alone. Raises `MalformedEntry`."""
    try:
        document = orjson.loads(meta)
        return float(document["logged_at"]), _requests(document)
    except Exception as error:
        raise MalformedEntry(f"{type(error).__name__}: {error}") from error


def _routing(requests: tuple[LoggedRequest, ...]) -> JsonObject:
    """What each request's route made of it. Few batches span an edit; of these, buckets of the last `units` alone."""
    routing: JsonObject = {"rules": [request.rule for request in requests]}
    units = next((request.units for request in reversed(requests) if request.units), "")
    if units:
        routing["units"] = units
        for key in ("bucket", "holdout_bucket"):
            routing[key + "s"] = [getattr(one, key) if one.units == units else None for one in requests]
    return {key: value for key, value in routing.items() if key == "units" or any(one is not None for one in value)}


def _requests(meta: JsonObject) -> tuple[LoggedRequest, ...]:
    requests = meta["requests"]
    routing = meta.get("routing", {})
    nothing = [None] * len(requests)
    columns = (routing.get(key, nothing) for key in ("buckets", "holdout_buckets", "rules"))
    traces = meta.get("traces", [""] * len(requests))
    units = str(routing.get("units", ""))
    return tuple(
        LoggedRequest(str(i), str(v), int(n), int(r), str(trace), units, *map(_optional_int, routed))
        for (i, v, n, r), trace, *routed in zip(requests, traces, *columns, strict=True)
    )


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _columns(columns: list[dict[str, Any]], data: bytes) -> dict[str, dict[str, Array]]:
    tensors: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}}
    offset = 0
    for column in columns:
        shape = tuple(column["shape"])
        if not all(type(extent) is int and extent >= 0 for extent in shape):
            # Numpy would take -1 for "as much as there is".
            raise MalformedEntry(f"column {column['name']!r} has shape {list(shape)}")
        if column["datatype"] == BYTES:
            if not all(isinstance(value, str) for value in column["values"]):
                raise MalformedEntry(f"column {column['name']!r} holds values that are no strings")
            array = string_array(list(column["values"]), shape)
        else:
            dtype = NUMPY_DTYPES[column["datatype"]]
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(data, dtype, count, offset).reshape(shape)
            offset += array.nbytes
        tensors[column["kind"] + "s"][column["name"]] = array
    if offset != len(data):
        raise MalformedEntry(f"{len(data)} bytes of data, the columns take {offset}")
    return tensors
