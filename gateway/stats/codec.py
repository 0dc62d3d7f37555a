"""Window sketches as bytes: `GWS1`, CRC-32 and header length (little-endian), a JSON header, the quantile sketches.

The checksum comes first because what follows is read by native code, which must never see bytes it did not write.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import orjson
from datasketches import kll_floats_sketch

from gateway.stats.sketch import KLL_K, CategoricalSketch, FeatureSketch, NumericSketch, WindowSketch

MAGIC = b"GWS1"
PREFIX = struct.Struct("<4sII")


def to_bytes(sketch: WindowSketch) -> bytes:
    """Some 9 KB for each numeric field that saw many values, less for few."""
    blobs = [f.quantiles.serialize() if isinstance(f, NumericSketch) else b"" for f in sketch.fields.values()]
    fields = [
        {
            "name": name,
            "kind": field.kind,
            "counts": field.counts.tolist(),
            "missing": field.missing,
            "bytes": len(blob),
        }
        | ({"edges": field.edges.tolist()} if isinstance(field, NumericSketch) else {"categories": field.categories})
        for (name, field), blob in zip(sketch.fields.items(), blobs, strict=True)
    ]
    header = orjson.dumps({"rows": sketch.rows, "fields": fields})
    body = b"".join((header, *blobs))
    return PREFIX.pack(MAGIC, zlib.crc32(body), len(header)) + body


def from_bytes(data: bytes) -> WindowSketch:
    """The inverse of `to_bytes`. Raises `ValueError` on anything else, whatever it is."""
    if len(data) < PREFIX.size:
        raise ValueError("not a window sketch: too short")
    magic, checksum, header_bytes = PREFIX.unpack_from(data)
    body = data[PREFIX.size :]
    if magic != MAGIC or zlib.crc32(body) != checksum:
        raise ValueError("not a window sketch, or a damaged one")
    try:
        return _parse(orjson.loads(body[:header_bytes]), body, header_bytes)
    except Exception as error:
        raise ValueError(f"not a window sketch: {type(error).__name__}: {error}") from error


def _parse(header: dict[str, Any], body: bytes, offset: int) -> WindowSketch:
    fields: dict[str, FeatureSketch] = {}
    for document in header["fields"]:
        end = offset + document["bytes"]
        fields[document["name"]] = _field(document, body[offset:end])
        offset = end
    if offset != len(body):
        raise ValueError(f"{len(body)} bytes, the header accounts for {offset}")
    return WindowSketch(fields, int(header["rows"]))


def _field(document: dict[str, Any], blob: bytes) -> FeatureSketch:
    field: FeatureSketch
    if document["kind"] == "categorical":
        field = CategoricalSketch(document["categories"])
    else:
        field = NumericSketch(document["edges"])
        field.quantiles = kll_floats_sketch.deserialize(blob)
        if field.quantiles.k != KLL_K:
            raise ValueError(f"quantile sketch with k={field.quantiles.k}, expected {KLL_K}")
    counts = np.array(document["counts"], dtype=np.int64)
    if counts.shape != field.counts.shape:
        raise ValueError(f"{len(counts)} counts for {len(field.counts)} cells")
    field.counts = counts
    field.missing = int(document["missing"])
    return field
