"""The fast codec is the precise one, only faster: what it takes, the other would have taken with the same result."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.errors import InvalidRequest
from gateway.protocol import fast_json
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.fast_json import FastDecoder
from gateway.protocol.json_codec import decode_request, encode_response
from gateway.protocol.signature import check_request
from gateway.types import (
    Array,
    BatchOutputs,
    InferenceRequest,
    InferenceResponse,
    ModelKey,
    NumberTemplate,
    Signature,
    TensorSpec,
)

OUTPUTS = (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", (-1, 2)))
SHAPES = [(-1,), (-1, 3), (-1, -1), (-1, 2, 2), (-1, 1)]
SIGNATURES = [
    *(Signature((TensorSpec("x", datatype, shape),), OUTPUTS) for datatype in NUMPY_DTYPES for shape in SHAPES),
    *(
        Signature((TensorSpec("a", one, (-1, 2)), TensorSpec("b", other, (-1, -1))), OUTPUTS)
        for one, other in zip(NUMPY_DTYPES, [*list(NUMPY_DTYPES)[5:], *list(NUMPY_DTYPES)[:5]], strict=True)
    ),
]
DECODERS = [FastDecoder(signature) for signature in SIGNATURES]

ORDINARY = {
    "b": ["true", "false"],
    "i": ["0", "1", "-1", "127"],
    "u": ["0", "1", "2", "255"],
    "f": ["0", "1.5", "-2", "3e2", "1E-3"],
    "O": ['"a"', '""', '"\\u00e9"', '"𝄞"'],
}
ODD = [
    *("-0", "-0.0", "1.0", "1e2", "01", "1.", "+1", ".5", "1e", "1e400", "1e39", "65520", "3.5e38", "NaN", "Infinity"),
    *("128", "-129", "256", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("-9223372036854775809", "true", "null", '"1"', '"["', '"\\ud800"', '"\\u0000"', "[]", "[1]", "{}", ""),
]
"""What stands in a tensor now and then: other types, numbers at the limits, and what is no JSON."""
SPACES = ["", "", "", "", " ", "\n", "\t\r\n"]

# Hypothesis would draw each character; one seed and our own dice make bodies a hundred times faster.
Dice = np.random.Generator


def rarely(dice: Dice, per_cent: float) -> bool:
    return bool(dice.random() < per_cent / 100)


def pick(dice: Dice, values: list[Any]) -> Any:
    return values[int(dice.integers(len(values)))]


def listed(dice: Dice, texts: list[str]) -> str:
    return "[" + ",".join(pick(dice, SPACES) + text + pick(dice, SPACES) for text in texts) + "]"


def nested(dice: Dice, texts: list[str], shape: list[int]) -> str:
    if len(shape) <= 1 or not shape[0]:
        return listed(dice, texts)
    step = len(texts) // shape[0]
    rows = [texts[start : start + step] for start in range(0, shape[0] * step, step)] if step else []
    return listed(dice, [nested(dice, row, shape[1:]) for row in rows])


def tensor_text(dice: Dice, spec: TensorSpec) -> str:
    shape = [int(dice.integers(1, 4)) if extent == -1 else extent for extent in spec.shape]
    if rarely(dice, 4):
        shape = [int(extent) for extent in dice.integers(0, 4, size=int(dice.integers(0, 4)))]
    count = max(0, math.prod(shape) + (int(dice.integers(-1, 2)) if rarely(dice, 4) else 0))
    datatype = pick(dice, list(NUMPY_DTYPES)) if rarely(dice, 3) else spec.datatype
    ordinary = ORDINARY[NUMPY_DTYPES[datatype].kind]
    texts = [pick(dice, ODD) if rarely(dice, 3) else pick(dice, ordinary) for _ in range(count)]
    nesting = pick(dice, [[count], [1, count], [count, 1]]) if rarely(dice, 5) else pick(dice, [shape, [count]])
    extents = [pick(dice, ["1.0", "true", "-1", "01", '"1"']) if rarely(dice, 2) else str(extent) for extent in shape]
    fields = [
        ("name", json.dumps(pick(dice, ["x", "y", "["]) if rarely(dice, 2) else spec.name)),
        ("shape", listed(dice, extents)),
        ("datatype", json.dumps(datatype)),
        ("data", nested(dice, texts, nesting)),
    ]
    if rarely(dice, 5):
        fields.append(
            pick(dice, [("parameters", "{}"), ("data", "[1]"), ("shape", "[1]"), ("name", '"x"'), ("q", "[")])
        )
    if rarely(dice, 3):
        del fields[int(dice.integers(len(fields)))]
    if rarely(dice, 3):
        fields[int(dice.integers(len(fields)))] = pick(dice, fields)
    return members_text(dice, fields)


def members_text(dice: Dice, members: list[tuple[str, str]]) -> str:
    if rarely(dice, 30):
        dice.shuffle(members)
    return "{" + ",".join(pick(dice, SPACES) + json.dumps(name) + ":" + text for name, text in members) + "}"


def body_text(dice: Dice, signature: Signature) -> bytes:
    tensors = [tensor_text(dice, spec) for spec in signature.inputs]
    if rarely(dice, 3):
        tensors.append(pick(dice, tensors))
    if rarely(dice, 2):
        tensors.pop()
    if rarely(dice, 10):
        dice.shuffle(tensors)
    members = [("inputs", listed(dice, tensors))]
    if rarely(dice, 20):
        members.append(("id", pick(dice, ['"a"', '""', '"["', '"\\ud800"', "7", "null"])))
    if rarely(dice, 20):
        some = ['[{"name":"y"}]', '[{"name":"z"},{"name":"y"}]', '[{"name":"y"},{"name":"y"}]', '[{"name":"q"}]']
        members.append(("outputs", pick(dice, [*some, "[]", "null", '["y"]', '[{"name":7}]', '{"name":"y"}'])))
    if rarely(dice, 5):
        members.append(pick(dice, [("parameters", "{}"), ("inputs", "[]"), ("id", '"b"'), ("q", "1")]))
    text = members_text(dice, members).encode("utf-8")
    if rarely(dice, 2):
        text = text[: int(dice.integers(len(text) + 1))]
    if rarely(dice, 2):
        text += pick(dice, [b"x", b"}", b"]", b"\0", b"{}", b" "])
    return text


def decode(decoder: FastDecoder, body: bytes, version: str | None = None) -> InferenceRequest | None:
    """The request, its numbers read if they were left as text."""
    decoded = decoder.decode(body, "m", version, {})
    if decoded is None:
        return None
    request, template, numbers = decoded
    if template is None:
        return request
    assert not request.inputs
    array = template.read_all([numbers], request.rows)
    try:
        inputs = template.decode(numbers) if array is None else {template.name: array}
    except InvalidRequest:
        # What the batch finds out later, the precise decoder says of the whole body as well.
        return None
    return replace(request, inputs=inputs)


def assert_same(fast: InferenceRequest, precise: InferenceRequest) -> None:
    assert (fast.model, fast.version, fast.id, fast.outputs) == (
        precise.model,
        precise.version,
        precise.id,
        precise.outputs,
    )
    assert fast.inputs.keys() == precise.inputs.keys()
    for name, array in precise.inputs.items():
        assert (fast.inputs[name].dtype, fast.inputs[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(fast.inputs[name], array)


@pytest.mark.parametrize("seed", range(4))
def test_what_the_fast_decoder_takes_the_precise_one_takes_alike(seed: int) -> None:
    dice = np.random.default_rng(seed)
    taken = left = 0
    for _ in range(4_000):
        number = int(dice.integers(len(SIGNATURES)))
        body = body_text(dice, SIGNATURES[number])
        # The second time around what was learned from the first, and from all the bodies before.
        for fast in (decode(DECODERS[number], body, "1"), decode(DECODERS[number], body, "1")):
            if fast is None:
                left += 1
                continue
            taken += 1
            # Raises if it would have refused.
            precise = decode_request(body, "m", "1", {})
            rows = check_request(precise.inputs, precise.outputs, SIGNATURES[number], 10**6)
            assert_same(fast, precise)
            assert (fast.rows, fast.fits) == (rows, SIGNATURES[number]), body
    # The dice show both sides.
    assert taken > 500
    assert left > 500


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
@pytest.mark.parametrize("is_nested", [False, True], ids=["flat", "nested"])
def test_the_common_body_goes_the_fast_way(datatype: str, is_nested: bool) -> None:
    signature = Signature((TensorSpec("x", datatype, (-1, 2)),), OUTPUTS)
    value = {"b": True, "O": "a", "f": 1.5}.get(NUMPY_DTYPES[datatype].kind, 1)
    data: list[Any] = [[value, value], [value, value]] if is_nested else [value] * 4
    body = orjson.dumps({"inputs": [{"name": "x", "shape": [2, 2], "datatype": datatype, "data": data}], "id": "7"})
    decoded = decode(FastDecoder(signature), body)
    if is_nested and NUMPY_DTYPES[datatype].kind in "bO":
        # Rare enough to go the other way.
        assert decoded is None
    else:
        assert decoded is not None
        assert decoded.inputs["x"].tolist() == [[value, value], [value, value]]


def test_a_decoder_forgets_one_body_before_the_next() -> None:
    decoder = FastDecoder(Signature((TensorSpec("x", "FP32", (-1,)),), OUTPUTS))
    bodies = [b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%d]}]}' % number for number in range(50)]
    decoded = [decode(decoder, body) for body in bodies]
    assert [request.inputs["x"].tolist() for request in decoded if request is not None] == [[n] for n in range(50)]


def test_shapes_without_end_are_not_all_remembered() -> None:
    decoder = FastDecoder(Signature((TensorSpec("x", "FP32", (-1, -1)),), OUTPUTS))
    for columns in range(1, 1_500):
        data = b",".join([b"1"] * columns)
        body = b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","data":[%b]}]}' % (columns, data)
        decoded = decode(decoder, body)
        assert decoded is not None
        assert decoded.inputs["x"].shape == (1, columns)
    assert len(decoder._readers["x"].shapes) <= fast_json.MAX_SHAPES
    assert len(decoder._templates) <= fast_json.MAX_TEMPLATES


TEMPLATE_BODY = '{"inputs":[{"name":"x","shape":[%s],"datatype":"%s","data":%s}]}'
NUMBERS = [
    *ODD,
    "1",
    "2.5",
    "-3",
    "1,2",
    "1,",
    ",",
    "1 ,\t2",
    '"a,b"',
    '1,"a',
    'b",2',
    "1]",
    "[1",
    "1],[2",
    "{}",
    '{"a":1',
]


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT8", "UINT64"])
@pytest.mark.parametrize("extents", ["1,2", "2,2", "1,1"])
@pytest.mark.parametrize("is_nested", [False, True], ids=["flat", "nested"])
def test_a_body_recognised_by_its_surroundings_is_what_the_precise_decoder_makes_of_it(
    datatype: str, extents: str, is_nested: bool
) -> None:
    decoder = FastDecoder(Signature((TensorSpec("x", datatype, (-1, -1)),), OUTPUTS))
    dice = np.random.default_rng(len(extents))
    size = math.prod(map(int, extents.split(",")))
    data = "[[%s]]" if is_nested and extents.startswith("1") else "[%s]"
    body = TEMPLATE_BODY % (extents, datatype, data % ",".join(["1"] * size))
    assert decode(decoder, body.encode()) is not None
    assert decoder._templates
    for _ in range(400):
        numbers = ",".join(pick(dice, SPACES) + pick(dice, NUMBERS) for _ in range(int(dice.integers(0, 5))))
        body = TEMPLATE_BODY % (extents, datatype, data % numbers)
        fast = decode(decoder, body.encode())
        if fast is not None:
            assert_same(fast, decode_request(body.encode(), "m", None, {}))


def test_the_numbers_of_several_requests_are_read_together_or_not_at_all() -> None:
    decoder = FastDecoder(Signature((TensorSpec("x", "FP32", (-1, 2)),), OUTPUTS))
    dice = np.random.default_rng(0)
    together = 0
    for _ in range(2_000):
        decoded: list[tuple[int, NumberTemplate, bytes]] = []
        while len(decoded) < 4:
            count = int(dice.integers(1, 3))
            texts = [pick(dice, NUMBERS) if rarely(dice, 5) else str(dice.integers(9)) for _ in range(2 * count)]
            found = decoder.decode(
                (TEMPLATE_BODY % (f"{count},2", "FP32", f"[{','.join(texts)}]")).encode(), "m", None, {}
            )
            if found is not None and found[1] is not None:
                decoded.append((found[0].rows, found[1], found[2]))
        array = decoded[0][1].read_all([numbers for _, _, numbers in decoded], sum(rows for rows, _, _ in decoded))
        if array is not None:
            together += 1
            alone = [template.decode(numbers)["x"] for _, template, numbers in decoded]
            np.testing.assert_array_equal(array, np.concatenate(alone))
    assert 500 < together < 2_000


def test_what_only_looks_like_the_data_is_not_learned() -> None:
    decoder = FastDecoder(Signature((TensorSpec("x", "FP32", (-1, 2)),), OUTPUTS))
    bodies = [
        TEMPLATE_BODY % ("2,2", "FP32", "[[1,2],[3,4]]"),
        '{"inputs":[{"data" :[1,2],"name":"x","datatype":"FP32","shape":[1,2]}]}',
        (TEMPLATE_BODY % ("1,2", "FP32", "[1,2]")).replace('{"inputs"', '{"id":"a","inputs"'),
    ]
    assert all(decode(decoder, body.encode()) is not None for body in bodies)
    assert not decoder._templates


numeric = [dtype for name, dtype in NUMPY_DTYPES.items() if name != BYTES]


def run_of(rows: int) -> st.SearchStrategy[list[Array]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3).map(lambda rest: (rows, *rest))
    one = st.sampled_from(numeric).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    strings = hnp.arrays(np.dtype(object), shapes, elements=st.text(max_size=3))
    return st.lists(one | one | strings, min_size=1, max_size=3)


def outcome(response: InferenceResponse) -> bytes | str:
    try:
        return encode_response(response)
    except Exception as error:
        return repr(error)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5).flatmap(lambda rows: st.tuples(st.just(rows), run_of(rows))), st.data())
def test_rows_cut_from_a_run_are_encoded_as_if_alone(drawn: tuple[int, list[Array]], data: st.DataObject) -> None:
    rows, arrays = drawn
    datatypes = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    specs = tuple(TensorSpec(f'o{i}"], [', datatypes[array.dtype], ()) for i, array in enumerate(arrays))
    run = BatchOutputs(specs, arrays)
    start = 0
    while start < rows:
        count = data.draw(st.integers(1, rows - start))
        indices = data.draw(st.none() | st.permutations(range(len(specs))).map(lambda order: tuple(order[:2])))
        request_id = data.draw(st.none() | st.text(max_size=3))
        key = ModelKey("m", "1")
        chosen = range(len(specs)) if indices is None else indices
        alone = [(specs[index], arrays[index][start : start + count]) for index in chosen]
        cut = InferenceResponse(key, request_id, None, "", run, indices, start, count)
        assert outcome(cut) == outcome(InferenceResponse(key, request_id, alone, ""))
        start += count
