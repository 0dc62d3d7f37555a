"""What each method sends and what its answer means, without I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import orjson

from gateway.client.codec import Result, decode_response, encode_request
from gateway.client.errors import InvalidResponse
from gateway.errors import shown
from gateway.protocol.binary_codec import BINARY_HEADER
from gateway.types import Array

T = TypeVar("T")

OWN_HEADERS = {"content-type", "content-length", "content-encoding", BINARY_HEADER}
"""They describe the body, so only the client can say them."""
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context section 3.2.2."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and how to read its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    """Raises `InvalidResponse`."""
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    """Seconds; None is the client's own."""
    is_idempotent: bool = True
    """Done twice, it does no harm (RFC 9110 section 9.2.2)."""
    statuses: tuple[int, ...] = (200,)
    """Those that `read` understands; any other is an error."""


class TensorMetadata(NamedTuple):
    """Name, datatype and shape of one input or output; -1 is a variable dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def infer_call(
    model: str,
    inputs: Mapping[str, Array],
    *,
    version: str | None,
    outputs: Sequence[str] | None,
    id: str | None,  # noqa: A002 -- the protocol's name
    headers: Mapping[str, str] | None,
    traceparent: str | None,
    timeout: float | None,
    binary: bool,
    context: Mapping[str, str],
) -> Call[Result]:
    """A prediction. `context`: headers of the current span, for want of others. Raises `ValueError`."""
    body = encode_request(inputs, outputs, id, binary=binary)
    own = {**context, **checked_headers(headers)}
    if traceparent is not None:
        if not TRACEPARENT.fullmatch(traceparent):
            raise ValueError(f"traceparent: expected version-traceid-parentid-flags in hex, got {shown(traceparent)}")
        own["traceparent"] = traceparent
    return Call(
        "POST",
        f"{model_path(model, version)}/infer",
        decode_response,
        body.content,
        own | body.headers,
        checked_timeout(timeout),
    )


def feedback_call(prediction_id: str, label: float | str) -> Call[bool]:
    """A label; the result is False if the prediction has one already."""
    document = {"prediction_id": prediction_id, "label": label}
    content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"content-type": "application/json"}
    return Call("POST", "/v2/feedback", _is_new_label, content, headers, is_idempotent=False)


def ready_call() -> Call[bool]:
    """Readiness: 503 is an answer here, not an error."""
    return Call("GET", "/v2/health/ready", lambda response: response.status_code == 200, statuses=(200, 503))


def models_call() -> Call[list[str]]:
    """The names of the models."""
    return Call("GET", "/v2/models", _names)


def metadata_call(model: str, version: str | None) -> Call[ModelMetadata]:
    """Inputs and outputs of a model."""
    return Call("GET", model_path(model, version), _metadata)


def model_path(model: str, version: str | None) -> str:
    """The model's path. Raises `ValueError` for what cannot be a part of one."""
    path = f"/v2/models/{_segment('model', model)}"
    return path if version is None else f"{path}/versions/{_segment('version', version)}"


def checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Lower-case names. Raises `ValueError` for a header that only the client can say."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    reserved = sorted(OWN_HEADERS & given.keys())
    if reserved:
        raise ValueError(f"headers: {reserved[0]} describes the body, which the client writes; leave it out")
    return given


def checked_timeout(timeout: float | None) -> float | None:
    """Raises `ValueError` unless it is a time."""
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout: expected more than 0 seconds, got {shown(timeout)}")
    return timeout


def _segment(what: str, text: str) -> str:
    if not isinstance(text, str) or text in {"", ".", ".."}:
        raise ValueError(f"{what}: expected a name, got {shown(text)}")
    return quote(text, safe="")


def _is_new_label(response: httpx.Response) -> bool:
    return _read(response, lambda document: not document["duplicate"])


def _names(response: httpx.Response) -> list[str]:
    return _read(response, lambda document: [str(name) for name in document["models"]])


def _metadata(response: httpx.Response) -> ModelMetadata:
    return _read(
        response,
        lambda document: ModelMetadata(
            name=str(document["name"]),
            versions=tuple(map(str, document.get("versions", ()))),
            platform=str(document["platform"]),
            inputs=tuple(map(_tensor, document["inputs"])),
            outputs=tuple(map(_tensor, document["outputs"])),
        ),
    )


def _tensor(tensor: Any) -> TensorMetadata:
    return TensorMetadata(str(tensor["name"]), str(tensor["datatype"]), tuple(map(int, tensor["shape"])))


def _read(response: httpx.Response, reading: Callable[[Any], T]) -> T:
    """What `reading` makes of the answer's JSON."""
    try:
        return reading(orjson.loads(response.content))
    except (ValueError, TypeError, KeyError) as error:
        message = f"{response.request.url}: the answer does not follow the protocol: {shown(response.text)}"
        raise InvalidResponse(message, status=response.status_code) from error
