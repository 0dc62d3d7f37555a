"""`ModelInferRequest` and `ModelInferResponse`, to and from what the data plane takes and gives. Pure.

Inputs come raw (`raw_input_contents`, one entry an input) or typed (`contents`), never both in one request. Outputs
leave raw, as Triton sends them: its clients read nothing else, and KServe's read either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import InvalidRequest
from gateway.protocol.classification import class_count, formed_outputs
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES, RAW_DTYPES
from gateway.protocol.json_codec import narrow
from gateway.protocol.parameters import check_values
from gateway.protocol.raw_tensor import check_shape, decode_raw, encode_raw, fill, text_of, unknown_datatype
from gateway.types import Array, InferenceRequest, InferenceResponse, OutputForm, string_array

PREDICTION_ID_PARAMETER = "prediction_id"
"""In the response besides its metadata, which `tritonclient` does not show and messages of a stream do not have."""

EMPTY_FINAL_PARAMETER = "triton_enable_empty_final_response"
FINAL_PARAMETER = "triton_final_response"
"""Set on every answer of a stream, as Triton does: its clients may wait for it."""

# `InferTensorContents`, field by field; FP16 and BF16 have none.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_CARRIERS = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}
"""What narrower integers travel as."""


def decode_request(message: pb.ModelInferRequest, headers: Mapping[str, str]) -> InferenceRequest:
    """The request in a message.

    Raises `InvalidRequest` naming the field and what was expected, `Unsupported` for shared memory.
    """
    outputs, forms = _requested_outputs(message.outputs)
    return InferenceRequest(
        model=message.model_name,
        version=message.model_version or None,
        inputs=_inputs(message),
        id=message.id or None,
        outputs=outputs,
        forms=forms,
        parameters=_request_parameters(message),
        headers=headers,
    )


def encode_response(response: InferenceResponse) -> pb.ModelInferResponse:
    """The message for a response."""
    message = pb.ModelInferResponse(
        model_name=response.key.name, model_version=response.key.version, id=response.id or ""
    )
    message.parameters[PREDICTION_ID_PARAMETER].string_param = response.prediction_id
    for spec, values, _ in formed_outputs(response):
        message.outputs.add(name=spec.name, datatype=spec.datatype, shape=values.shape)
        message.raw_output_contents.append(bytes(encode_raw(spec.datatype, values)))
    return message


def parameters_of(parameters: Mapping[str, Any], path: str = "parameters") -> dict[str, Any]:
    """Parameters of one of several types as plain values. Raises `InvalidRequest` for one without a value."""
    plain = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"{path}.{name}: expected a value")
        plain[name] = getattr(parameter, kind)
    return plain


def _request_parameters(message: pb.ModelInferRequest) -> dict[str, Any]:
    parameters = parameters_of(message.parameters)
    # Asks for a mark after the last answer to a request. There is one answer, and in a stream it carries the mark.
    parameters.pop(EMPTY_FINAL_PARAMETER, None)
    return parameters


def _inputs(message: pb.ModelInferRequest) -> dict[str, Array]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents: {len(raw)} entries for {len(message.inputs)} inputs; expected one for each, in order"
        )
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        path = f"inputs[{index}]"
        _checked(tensor.parameters, f"{path}.parameters")
        if not tensor.name:
            raise InvalidRequest(f"{path}.name: expected the name of an input")
        if tensor.name in inputs:
            raise InvalidRequest(f"{path}.name: input {tensor.name!r} occurs twice")
        if not raw:
            inputs[tensor.name] = _typed(tensor, path)
        elif tensor.HasField("contents"):
            raise InvalidRequest(
                f"{path}.contents: raw_input_contents hold the data of all inputs; send one of the two"
            )
        else:
            inputs[tensor.name] = decode_raw(tensor.datatype, tensor.shape, raw[index], path)
    return inputs


def _typed(tensor: Any, path: str) -> Array:
    datatype, shape = tensor.datatype, tensor.shape
    size = check_shape(shape, path)
    if datatype not in RAW_DTYPES:
        raise unknown_datatype(datatype, path)
    if datatype not in CONTENTS:
        raise InvalidRequest(f"{path}.datatype: {datatype} has no contents; send it in raw_input_contents")
    name = CONTENTS[datatype]
    misplaced = [field.name for field, _ in tensor.contents.ListFields() if field.name != name]
    if misplaced:
        raise InvalidRequest(f"{path}.contents.{misplaced[0]}: expected {datatype} values in {name}")
    values = getattr(tensor.contents, name)
    path = f"{path}.contents.{name}"
    if len(values) != size:
        raise InvalidRequest(f"{path}: {len(values)} values do not fill shape {list(shape)}, which takes {size}")
    if datatype == BYTES:
        texts = [text_of(element, position, path) for position, element in enumerate(values)]
        return fill(string_array(texts, (size,)), shape, path)
    return fill(_numbers(values, datatype, path), shape, path)


def _numbers(values: Any, datatype: str, path: str) -> Array:
    dtype = NUMPY_DTYPES[datatype]
    carrier = _CARRIERS.get(CONTENTS[datatype], dtype)
    wide = np.fromiter(values, carrier, len(values))
    return wide if carrier == dtype else narrow(wide, datatype, path)


def _requested_outputs(
    outputs: Iterable[Any],
) -> tuple[tuple[str, ...] | None, tuple[OutputForm, ...] | None]:
    """Names and forms of the outputs, as `InferenceRequest` has them."""
    forms: dict[str, OutputForm] = {}
    for index, output in enumerate(outputs):
        path = f"outputs[{index}]"
        parameters = _checked(output.parameters, f"{path}.parameters")
        if output.name in forms:
            raise InvalidRequest(f"{path}.name: output {output.name!r} occurs twice")
        forms[output.name] = OutputForm(is_binary=True, classes=class_count(parameters, f"{path}.parameters"))
    return tuple(forms) or None, tuple(forms.values()) or None


def _checked(parameters: Mapping[str, Any], path: str) -> dict[str, Any]:
    plain = parameters_of(parameters, path)
    check_values(plain, path)
    return plain
