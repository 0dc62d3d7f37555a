"""Does a request fit what the model takes? Checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from gateway.errors import InvalidRequest
from gateway.protocol.datatypes import DATATYPES
from gateway.types import Array, Signature, TensorSpec


def check_request(
    inputs: Mapping[str, Array], outputs: Sequence[str] | None, signature: Signature, max_rows: int
) -> int:
    """Rows of a request with these inputs that wants these outputs (None is all); 1 for a model without a row axis.

    Raises `InvalidRequest` naming the field, what was expected and what came.
    """
    _check_names("input", list(inputs), [spec.name for spec in signature.inputs], complete=True)
    if outputs is not None:
        _check_names("output", list(outputs), [spec.name for spec in signature.outputs], complete=False)
    for spec in signature.inputs:
        _check_tensor(inputs[spec.name], spec)
    if not signature.is_batchable:
        return 1
    return _check_rows(inputs, [(spec.name, spec.axis) for spec in signature.inputs if spec.axis is not None], max_rows)


def refuse_rows(rows: int, max_rows: int) -> NoReturn:
    """Raise `InvalidRequest` for more rows than a request may have."""
    raise InvalidRequest(f"{rows} rows in one request; this model takes at most {max_rows}")


def _check_rows(inputs: Mapping[str, Array], places: Sequence[tuple[str, int]], max_rows: int) -> int:
    """`places` are the inputs that have rows, by name, and on which axis."""
    extents = [inputs[name].shape[axis] for name, axis in places]
    rows: int = extents[0]
    if extents.count(rows) != len(extents):
        refuse_uneven("rows", places, extents)
    if rows == 0:
        raise InvalidRequest(f"the batch is empty: expected at least 1 row on axis {places[0][1]}")
    if rows > max_rows:
        refuse_rows(rows, max_rows)
    return rows


def refuse_uneven(what: str, places: Sequence[tuple[str, int]], extents: Sequence[int]) -> NoReturn:
    """Raise `InvalidRequest` for inputs, by name and axis, whose extents there should be the same."""
    axes = {axis for _, axis in places}
    where = f" (axis {axes.pop()})" if len(axes) == 1 else ""
    named = (
        f"{name!r} {extent}" if where else f"{name!r} {extent} (axis {axis})"
        for (name, axis), extent in zip(places, extents, strict=True)
    )
    raise InvalidRequest(f"the inputs differ in {what}{where}: {', '.join(named)}")


def _check_names(what: str, given: list[str], known: list[str], *, complete: bool) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidRequest(f"unknown {what} {unknown[0]!r}; the model's {what}s: {', '.join(known)}")
    missing = [name for name in known if name not in given]
    if complete and missing:
        raise InvalidRequest(f"missing {what} {missing[0]!r}; the model's {what}s: {', '.join(known)}")


def _check_tensor(array: Array, spec: TensorSpec) -> None:
    datatype = DATATYPES[array.dtype]
    if datatype != spec.datatype:
        raise InvalidRequest(f"input {spec.name!r}: expected datatype {spec.datatype}, got {datatype}")
    fits = len(array.shape) == len(spec.shape) and all(
        expected in (-1, extent) for expected, extent in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"input {spec.name!r}: expected shape {list(spec.shape)} (-1 is any), got {list(array.shape)}"
        )
