"""Models with rows on other axes, over HTTP: each tensor keeps the model's own shape, whoever shared the run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from gateway.types import Array
from tests.support import strange_models
from tests.support.doors import Doors, HttpAnswer, doors_beside, exchange
from tests.support.onnx_models import write_version

MODELS = {
    "recurrent": (strange_models.recurrent(), "[batching]\nmax_request_rows = 4\n"),
    "total": (strange_models.running_total(), ""),
    "resampled": (strange_models.resampled(), ""),
    "marked": (strange_models.marked(), ""),
    "encoder": (strange_models.encoder(), strange_models.PADDED_ENCODER),
}


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    models = tmp_path_factory.mktemp("models")
    for name, (content, toml) in MODELS.items():
        write_version(models, name, "1", content, toml)
    with doors_beside(models, tmp_path_factory.mktemp("data")) as opened:
        yield opened


@pytest.fixture(params=["fast", "slow"])
def port(request: pytest.FixtureRequest, doors: Doors) -> int:
    """Either door."""
    number: int = getattr(doors, request.param)
    return number


def ask(port: int, path: str, document: Any = None) -> httpx.Response:
    url = f"http://127.0.0.1:{port}{path}"
    return httpx.get(url) if document is None else httpx.post(url, content=orjson.dumps(document))


def tensor(name: str, array: Array) -> dict[str, Any]:
    datatype = {"f": "FP32", "i": "INT64", "O": "BYTES"}[array.dtype.kind]
    return {"name": name, "shape": array.shape, "datatype": datatype, "data": array.ravel().tolist()}


def body(inputs: dict[str, Array], **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(name, array) for name, array in inputs.items()], **more}


def arrays(document: dict[str, Any]) -> dict[str, Array]:
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in document["outputs"]}


def in_one_go(port: int, model: str, bodies: list[dict[str, Any]]) -> list[dict[str, Array]]:
    """The answers to requests that arrive in one piece, and so share runs."""
    contents = [orjson.dumps(document) for document in bodies]
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: here\r\nContent-Length: "
    requests = [head.encode() + b"%d\r\n\r\n" % len(content) + content for content in contents]
    answers: list[HttpAnswer] = asyncio.run(exchange(port, [b"".join(requests)], [False] * len(requests)))
    assert [answer.status for answer in answers] == [200] * len(bodies), answers
    return [arrays(orjson.loads(answer.body)) for answer in answers]


def executions(port: int, model: str) -> int:
    (stats,) = ask(port, f"/v2/models/{model}/stats").json()["model_stats"]
    return int(stats["execution_count"])


def recurrent(seed: int, rows: int = 2) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {"state": random.normal(size=(2, rows, 3)).astype("f4"), "x": random.normal(size=(rows, 3)).astype("f4")}


def test_a_state_on_axis_1_beside_an_input_on_axis_0(doors: Doors) -> None:
    callers = [recurrent(seed, rows) for seed, rows in enumerate([1, 3, 2, 1])]
    before = executions(doors.fast, "recurrent")
    answers = in_one_go(doors.fast, "recurrent", [body(inputs) for inputs in callers])
    assert executions(doors.fast, "recurrent") - before < len(callers)
    for inputs, outputs in zip(callers, answers, strict=True):
        np.testing.assert_allclose(outputs["y"], inputs["x"] + inputs["state"][0], rtol=1e-5)
        np.testing.assert_allclose(outputs["new_state"], inputs["x"] + inputs["state"] / 2, rtol=1e-5)


def test_one_output_of_several_and_an_id(port: int) -> None:
    inputs = recurrent(5)
    document = ask(port, "/v2/models/recurrent/infer", body(inputs, id="me", outputs=[{"name": "new_state"}])).json()
    assert document["id"] == "me"
    assert [output["shape"] for output in document["outputs"]] == [[2, 2, 3]]


def test_binary_tensors_keep_their_axes(port: int) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    described = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = orjson.dumps({"inputs": [described], "parameters": {"binary_data_output": True}})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    for _ in range(3):
        response = httpx.post(
            f"http://127.0.0.1:{port}/v2/models/total/infer", content=head + x.tobytes(), headers=headers
        )
        length = int(response.headers["inference-header-content-length"])
        (output,) = orjson.loads(response.content[:length])["outputs"]
        assert output["shape"] == [3, 2, 2]
        assert np.frombuffer(response.content[length:], "f4").tolist() == np.cumsum(x, axis=0).ravel().tolist()


def test_short_texts_of_numbers_for_rows_on_axis_1(doors: Doors) -> None:
    callers = [{"x": np.full((2, rows, 2), rows, np.float32)} for rows in (1, 2, 1, 2)]
    for _ in range(3):
        answers = in_one_go(doors.fast, "total", [body(inputs) for inputs in callers])
        for inputs, outputs in zip(callers, answers, strict=True):
            assert outputs["y"].tolist() == np.cumsum(inputs["x"], axis=0).tolist()


def test_a_rate_is_that_of_its_own_caller(doors: Doors) -> None:
    signal = np.ones((1, 2), np.float32)
    callers = [{"signal": signal, "rate": np.array(rate, np.float32)} for rate in (1, 2, 1, 3, 2)]
    answers = in_one_go(doors.fast, "resampled", [body(inputs) for inputs in callers])
    assert [outputs["y"].tolist() for outputs in answers] == [[[rate, rate]] for rate in (1, 2, 1, 3, 2)]


def test_strings_with_one_for_all_rows(port: int) -> None:
    inputs: dict[str, Array] = {"text": np.array([["a", "b"], ["ä", ""]], object), "mark": np.array([["!"]], object)}
    document = ask(port, "/v2/models/marked/infer", body(inputs)).json()
    assert arrays(document)["y"].tolist() == [["a", "b", "!"], ["ä", "", "!"]]


def test_padded_sequences_come_back_as_long_as_they_were(doors: Doors) -> None:
    callers = [{"tokens": np.arange(1, 1 + length).reshape(1, length)} for length in (3, 4, 9, 1, 3)]
    answers = in_one_go(doors.fast, "encoder", [body(inputs) for inputs in callers])
    for inputs, outputs in zip(callers, answers, strict=True):
        assert outputs["hidden"].tolist() == (10 * inputs["tokens"]).tolist()
        np.testing.assert_allclose(outputs["mean"], 10 * inputs["tokens"].mean(axis=1))


def test_a_mask_that_the_gateway_makes_is_no_input_of_the_model(port: int) -> None:
    document = ask(port, "/v2/models/encoder").json()
    assert [described["name"] for described in document["inputs"]] == ["tokens"]
    inputs: dict[str, Array] = {"tokens": np.ones((1, 2), np.int64), "mask": np.ones((1, 2), np.float32)}
    response = ask(port, "/v2/models/encoder/infer", body(inputs))
    assert (response.status_code, response.json()["error"]) == (400, "unknown input 'mask'; the model's inputs: tokens")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (
            {**recurrent(0), "state": np.zeros((2, 3, 3), np.float32)},
            "the inputs differ in rows: 'x' 2 (axis 0), 'state' 3 (axis 1)",
        ),
        (recurrent(0, rows=5), "5 rows in one request; this model takes at most 4"),
        (recurrent(0, rows=0), "the batch is empty: expected at least 1 row on axis 0"),
    ],
)
def test_rows_are_counted_on_the_axis_where_they_lie(inputs: dict[str, Array], error: str, port: int) -> None:
    response = ask(port, "/v2/models/recurrent/infer", body(inputs))
    assert (response.status_code, response.json()["error"]) == (400, error)


def test_v1_takes_such_a_model_by_column_only(port: int) -> None:
    response = ask(port, "/v1/models/total:predict", {"instances": [[[1, 2]]]})
    assert response.status_code == 400
    assert "do not all lie on axis 0; send inputs instead" in response.json()["error"]
    response = ask(port, "/v1/models/total:predict", {"inputs": [[[1, 2]], [[1, 2]]]})
    assert response.json() == {"outputs": [[[1.0, 2.0]], [[2.0, 4.0]]]}


def test_classes_are_those_of_each_row(port: int) -> None:
    x = np.array([[[0, 1], [3, 2]]], np.float32)
    outputs = [{"name": "y", "parameters": {"classification": 1}}]
    document = ask(port, "/v2/models/total/infer", body({"x": x}, outputs=outputs)).json()
    assert arrays(document)["y"].tolist() == [["1.000000:1"], ["3.000000:0"]]


def test_triton_clients_learn_that_axis_0_is_no_batch(port: int) -> None:
    config = ask(port, "/v2/models/recurrent/config").json()
    assert config["max_batch_size"] == 0
    assert [described["dims"] for described in config["input"]] == [[-1, 3], [2, -1, 3]]


def test_the_documents_own_examples_work(port: int) -> None:
    paths = ask(port, "/openapi.json").json()["paths"]
    for model in MODELS:
        for path in (f"/v2/models/{model}/infer", f"/v1/models/{model}:predict"):
            examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
            for example in examples.values():
                response = ask(port, path, example["value"])
                assert response.status_code == 200, (path, response.text)
