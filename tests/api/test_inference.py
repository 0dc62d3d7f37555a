"""The public port, byte for byte as a client meets it."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest

import gateway as package
from gateway.protocol.datatypes import NUMPY_DTYPES
from tests.support.requests import AFFINE, classify, error_of, inputs, outputs_of, tensor, turns
from tests.support.running import GatewayProcess, metric
from tests.support.sockets import connection, read_answers, request_bytes

EXTENSIONS = [
    *("binary_tensor_data", "classification", "model_configuration"),
    *("parameters", "schedule_policy", "statistics"),
]
MODELS = [
    *("affine", "busy", "classifier", *sorted(f"echo-{name}" for name in NUMPY_DTYPES if name != "BYTES")),
    *("fixed", "logarithm", "lookup", "text", "total", "unscored"),
]


class TestMetadata:
    def test_the_server_names_itself_and_only_extensions_that_work(self, gateway: GatewayProcess) -> None:
        response = gateway.public.get("/v2")
        assert response.status_code == 200
        assert response.json() == {"name": "model-gateway", "version": package.__version__, "extensions": EXTENSIONS}

    def test_it_is_live_and_ready(self, gateway: GatewayProcess) -> None:
        assert gateway.public.get("/v2/health/live").json() == {"live": True}
        assert gateway.public.get("/v2/health/ready").json() == {"ready": True}

    def test_every_model_is_listed(self, gateway: GatewayProcess) -> None:
        assert gateway.public.get("/v2/models").json() == {"models": MODELS}

    @pytest.mark.parametrize("path", ["/v2/models/affine", "/v2/models/affine/versions/1"])
    def test_a_model_describes_itself_with_the_row_axis(self, gateway: GatewayProcess, path: str) -> None:
        assert gateway.public.get(path).json() == {
            "name": "affine",
            "versions": ["1", "2"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }

    @pytest.mark.parametrize("path", ["/v2/models/affine/ready", "/v2/models/affine/versions/2/ready"])
    def test_a_loaded_model_is_ready(self, gateway: GatewayProcess, path: str) -> None:
        assert gateway.public.get(path).json() == {"name": "affine", "ready": True}


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/"),
            ("GET", "/v1"),
            ("GET", "/v1/models/"),
            ("GET", "/v1/models/affine:predict/"),
            ("POST", "/v1/models/a:b:predict"),
            ("GET", "/v2/"),
            ("GET", "/v2/models/"),
            ("POST", "/v2/models/affine/infer/"),
            ("POST", "/v2/models/affine/versions//infer"),
            ("POST", "/v2//models/affine/infer"),
            ("GET", "/v2/models/affine/trace/settings"),
            ("GET", "/metrics"),
            ("GET", "/admin/routes"),
            ("PUT", "/admin/routes/affine"),
            ("DELETE", "/nothing"),
        ],
    )
    def test_an_unknown_path_is_404(self, gateway: GatewayProcess, method: str, path: str) -> None:
        assert error_of(gateway.public.request(method, path), 404) == "Not Found"

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v2/models/affine/infer", "POST"),
            ("PUT", "/v2/models/affine/infer", "POST"),
            ("DELETE", "/v2/models/affine/versions/1/infer", "POST"),
            ("POST", "/v2", "GET"),
            ("POST", "/v2/models", "GET"),
            ("POST", "/v2/models/affine", "GET"),
            ("POST", "/v2/health/live", "GET"),
            ("POST", "/v2/health/ready", "GET"),
            ("DELETE", "/v2/models/affine/ready", "GET"),
            ("GET", "/v2/feedback", "POST"),
        ],
    )
    def test_the_wrong_verb_is_405(self, gateway: GatewayProcess, method: str, path: str, allowed: str) -> None:
        response = gateway.public.request(method, path)
        assert error_of(response, 405) == "Method Not Allowed"
        assert allowed in response.headers["allow"]

    @pytest.mark.parametrize(
        ("method", "path", "status", "message"),
        [
            ("GET", "/v2/models/absent", 404, "unknown model 'absent'; models: "),
            ("GET", "/v2/models/absent/ready", 404, "unknown model 'absent'"),
            ("GET", "/v2/models/affine/versions/9", 404, "unknown version '9' of model 'affine'; versions: 1, 2"),
            ("GET", "/v2/models/affine/versions/9/ready", 404, "unknown version '9'"),
            ("GET", "/v2/models/affine/versions/x", 404, "unknown version 'x'"),
        ],
    )
    def test_an_unknown_model_or_version_is_404_with_what_there_is(
        self, gateway: GatewayProcess, method: str, path: str, status: int, message: str
    ) -> None:
        assert error_of(gateway.public.request(method, path), status).startswith(message)

    @pytest.mark.parametrize(
        ("path", "body", "status", "message"),
        [
            ("absent/infer", AFFINE, 404, "unknown model 'absent'"),
            ("absent/versions/1/infer", AFFINE, 404, "unknown model 'absent'"),
            ("affine/versions/9/infer", AFFINE, 404, "unknown version '9'"),
            ("affine/versions/01/infer", AFFINE, 404, "unknown version '01'"),
            ("affine/versions/-1/infer", AFFINE, 404, "unknown version '-1'"),
            ("a%20b/infer", AFFINE, 404, "unknown model 'a b'"),
            ("affine/infer", b"", 400, "body: not JSON"),
            ("affine/infer", b"\xff", 400, "body: not JSON"),
            ("affine/infer", b"[]", 400, "body: expected a JSON object"),
            ("affine/infer", {}, 400, "inputs: expected a non-empty list"),
            ("affine/infer", inputs(tensor("x", "FP32", [1, 2])), 400, "input 'x': expected shape [-1, 3]"),
            ("affine/infer", inputs(tensor("x", "FP64", [1, 2, 3])), 400, "input 'x': expected datatype FP32"),
            ("affine/infer", inputs(tensor("z", "FP32", [1, 2, 3])), 400, "unknown input 'z'; the model's inputs: x"),
            ("affine/infer", inputs(tensor("x", "FP32", [1, None, 3])), 400, "inputs[0].data[1]: expected FP32"),
            ("affine/infer", inputs(tensor("x", "FP32", [], [0, 3])), 400, "the batch is empty"),
            ("affine/infer", {**AFFINE, "outputs": [{"name": "z"}]}, 400, "unknown output 'z'"),
            ("busy/infer", turns(0, rows=9), 400, "9 rows in one request; this model takes at most 8"),
            ("lookup/infer", inputs(tensor("index", "INT64", [7], [1])), 400, "the model refuses these values"),
            ("logarithm/infer", inputs(tensor("x", "FP32", [-1])), 500, "output 'y': data[0] is nan"),
            ("logarithm/infer", inputs(tensor("x", "FP32", [0])), 500, "output 'y': data[0] is -inf"),
            ("unscored/infer", inputs(tensor("x", "FP32", [-1])), 500, "output 'probability': data[0] is nan"),
            (
                "affine/infer",
                inputs({"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}),
                400,
                "inputs[0].parameters.binary_data_size: nothing says where the bytes begin",
            ),
            ("affine/infer", {**AFFINE, "parameters": {"binary_data_output": 1}}, 400, "parameters.binary_data_output"),
        ],
    )
    def test_the_status_table(self, gateway: GatewayProcess, path: str, body: Any, status: int, message: str) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        response = gateway.public.post(f"/v2/models/{path}", content=content)
        assert error_of(response, status).startswith(message)
        assert "prediction-id" not in response.headers

    def test_errors_are_counted_by_model_and_code(self, gateway: GatewayProcess) -> None:
        before = metric(gateway, "gateway_errors_total", model="lookup", reason="invalid_request")
        unknown = metric(gateway, "gateway_errors_total", model="", reason="not_found")
        gateway.predict("lookup", inputs(tensor("index", "INT64", [7], [1])))
        gateway.predict("nobody-has-this-name", AFFINE)
        assert metric(gateway, "gateway_errors_total", model="lookup", reason="invalid_request") == before + 1
        assert metric(gateway, "gateway_errors_total", model="", reason="not_found") == unknown + 1


class TestAnswers:
    def test_an_answer_is_what_the_protocol_says(self, gateway: GatewayProcess) -> None:
        response = gateway.predict("affine", {**AFFINE, "id": "a request"})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "model_name": "affine",
            "model_version": "2",
            "id": "a request",
            "outputs": [{"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [4.0, 7.0, 10.0]}],
        }

    def test_without_an_id_there_is_none(self, gateway: GatewayProcess) -> None:
        assert "id" not in gateway.predict("affine", AFFINE).json()

    def test_a_version_can_be_asked_for(self, gateway: GatewayProcess) -> None:
        response = gateway.predict("affine", AFFINE, version="1")
        assert response.json()["model_version"] == "1"
        assert outputs_of(response) == {"y": [3.0, 5.0, 7.0]}

    def test_every_answer_has_a_prediction_id_of_its_own(self, gateway: GatewayProcess) -> None:
        ids = {gateway.predict("affine", AFFINE).headers["prediction-id"] for _ in range(20)}
        assert len(ids) == 20
        assert all(len(text) == 48 for text in ids)

    def test_outputs_come_as_asked_for(self, gateway: GatewayProcess) -> None:
        body = {**classify(1.0), "outputs": [{"name": "probability"}, {"name": "label"}]}
        assert [output["name"] for output in gateway.predict("classifier", body).json()["outputs"]] == [
            "probability",
            "label",
        ]
        body = {**classify(1.0), "outputs": [{"name": "label"}]}
        assert outputs_of(gateway.predict("classifier", body)) == {"label": [1]}

    def test_strings_come_back_as_strings(self, gateway: GatewayProcess) -> None:
        words = ["", "zwölf", "𝄞", '"\\', "\u0000"]
        assert outputs_of(gateway.predict("text", inputs(tensor("x", "BYTES", words, [5, 1])))) == {"y": words}

    def test_a_model_without_rows_answers(self, gateway: GatewayProcess) -> None:
        body = inputs(tensor("x", "FP32", [[1, 2], [3, 4]], [2, 2]))
        assert outputs_of(gateway.predict("fixed", body)) == {"y": [1.0, 2.0, 3.0, 4.0]}

    def test_a_model_that_adds_its_rows_up_answers_each_caller_alone(self, gateway: GatewayProcess) -> None:
        def ask(number: int) -> list[float]:
            body = inputs(tensor("x", "FP32", [number, 1] * 2, [2, 2]))
            return outputs_of(gateway.predict("total", body))["y"]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(40))) == [[2.0 * number, 2.0] for number in range(40)]

    def test_an_answer_that_json_cannot_hold_is_that_callers_trouble_alone(self, gateway: GatewayProcess) -> None:
        def ask(value: float) -> int:
            return gateway.predict("logarithm", inputs(tensor("x", "FP32", [value]))).status_code

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, [1.0, -1.0] * 20)) == [200, 500] * 20

    @pytest.mark.parametrize("datatype", [name for name in NUMPY_DTYPES if name != "BYTES"])
    def test_every_datatype_is_served(self, gateway: GatewayProcess, datatype: str) -> None:
        data = [True, False] if datatype == "BOOL" else [1, 0]
        assert outputs_of(gateway.predict(f"echo-{datatype}", inputs(tensor("x", datatype, data)))) == {"y": data}

    def test_many_callers_at_once_get_their_own_rows_and_share_runs(self, gateway: GatewayProcess) -> None:
        rows = metric(gateway, "gateway_rows_total", model="affine", version="2")
        batches = metric(gateway, "gateway_batches_total", model="affine", version="2")

        async def ask(client: httpx.AsyncClient, number: int) -> list[float]:
            body = inputs(tensor("x", "FP32", [number] * 3))
            return outputs_of(await client.post("/v2/models/affine/infer", json=body))["y"]

        async def ask_all() -> list[list[float]]:
            async with httpx.AsyncClient(base_url=gateway.public_url, timeout=30.0, trust_env=False) as client:
                return await asyncio.gather(*(ask(client, number) for number in range(100)))

        assert asyncio.run(ask_all()) == [[3.0 * number + 1.0] * 3 for number in range(100)]
        assert metric(gateway, "gateway_rows_total", model="affine", version="2") == rows + 100
        assert metric(gateway, "gateway_batches_total", model="affine", version="2") < batches + 100

    @pytest.mark.parametrize("content_type", ["", "text/plain", "application/octet-stream", "application/json; x=y"])
    def test_the_content_type_of_a_request_does_not_matter(self, gateway: GatewayProcess, content_type: str) -> None:
        headers = {"Content-Type": content_type}
        response = gateway.public.post("/v2/models/affine/infer", content=orjson.dumps(AFFINE), headers=headers)
        assert response.status_code == 200


class TestBodies:
    """The gateway under test takes bodies of up to 65536 bytes."""

    def body(self, size: int) -> bytes:
        content = orjson.dumps(AFFINE)
        return content[:-1] + b" " * (size - len(content)) + b"}"

    def test_a_body_of_the_largest_size_is_taken(self, gateway: GatewayProcess) -> None:
        assert gateway.public.post("/v2/models/affine/infer", content=self.body(65_536)).status_code == 200

    def test_a_larger_body_is_413(self, gateway: GatewayProcess) -> None:
        response = gateway.public.post("/v2/models/affine/infer", content=self.body(65_537))
        assert "65536 bytes" in error_of(response, 413)

    def test_a_larger_body_that_does_not_say_so_is_413(self, gateway: GatewayProcess) -> None:
        chunks = (self.body(100_000)[start : start + 10_000] for start in range(0, 100_000, 10_000))
        assert "65536 bytes" in error_of(gateway.public.post("/v2/models/affine/infer", content=chunks), 413)

    def test_a_chunked_body_is_taken(self, gateway: GatewayProcess) -> None:
        content = orjson.dumps(AFFINE)
        chunks = (content[start : start + 7] for start in range(0, len(content), 7))
        assert gateway.public.post("/v2/models/affine/infer", content=chunks).status_code == 200

    def test_a_huge_announced_body_is_refused_before_it_is_sent(self, gateway: GatewayProcess) -> None:
        head = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n"
        assert raw(gateway, head).startswith(b"HTTP/1.1 413 ")

    def test_a_client_that_waits_for_100_continue_gets_it(self, gateway: GatewayProcess) -> None:
        content = orjson.dumps(AFFINE)
        head = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        with connection(gateway) as sock:
            sock.sendall(head % len(content))
            assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
            sock.sendall(content)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def raw(gateway: GatewayProcess, data: bytes) -> bytes:
    """What comes back for these bytes until the server closes or has nothing more to say."""
    with connection(gateway) as sock:
        sock.sendall(data)
        return sock.recv(65_536)


class TestConnections:
    def test_answers_come_in_the_order_of_pipelined_requests(self, gateway: GatewayProcess) -> None:
        requests = [
            request_bytes("busy", {**turns(8_000), "id": "slow"}),
            request_bytes("affine", {**AFFINE, "id": "fast"}),
            b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n",
            request_bytes("affine", {"inputs": []}),
            request_bytes("affine", {**AFFINE, "id": "last"}),
        ]
        with connection(gateway) as sock:
            sock.sendall(b"".join(requests))
            answers = read_answers(sock, len(requests))
        assert [status for status, _ in answers] == [200, 200, 200, 400, 200]
        assert [document.get("id") for _, document in answers] == ["slow", "fast", None, None, "last"]

    def test_a_request_may_arrive_one_byte_at_a_time(self, gateway: GatewayProcess) -> None:
        with connection(gateway) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request_bytes("affine", AFFINE):
                sock.sendall(bytes([byte]))
            ((status, _),) = read_answers(sock, 1)
        assert status == 200

    def test_many_requests_share_one_connection(self, gateway: GatewayProcess) -> None:
        with connection(gateway) as sock:
            for number in range(20):
                sock.sendall(request_bytes("affine", {**AFFINE, "id": str(number)}))
                ((status, document),) = read_answers(sock, 1)
                assert (status, document["id"]) == (200, str(number))

    @pytest.mark.parametrize("closing", [b"Connection: close\r\n", b"connection: Close\r\n"])
    def test_the_connection_is_closed_when_the_client_asks(self, gateway: GatewayProcess, closing: bytes) -> None:
        with connection(gateway) as sock:
            sock.sendall(request_bytes("affine", AFFINE, closing))
            assert read_answers(sock, 1)[0][0] == 200
            assert sock.recv(1) == b""

    @pytest.mark.parametrize(
        "data", [b"\r\nnot http\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"POST /v2 HTTP/9.9\r\n\r\n"]
    )
    def test_bytes_that_are_no_http_are_400_and_hurt_nobody(self, gateway: GatewayProcess, data: bytes) -> None:
        assert raw(gateway, data).startswith(b"HTTP/1.1 400 ")
        assert gateway.predict("affine", AFFINE).status_code == 200

    @pytest.mark.parametrize("path", ["/v2/models/%00/infer", "/v2/models/%ff/infer", "/v2/models/a%2Fb/infer"])
    def test_odd_names_in_a_path_are_a_404(self, gateway: GatewayProcess, path: str) -> None:
        error_of(gateway.public.post(path, json=AFFINE), 404)

    def test_a_query_string_does_not_matter(self, gateway: GatewayProcess) -> None:
        assert gateway.public.post("/v2/models/affine/infer?x=1", json=AFFINE).status_code == 200

    def test_a_quoted_name_is_the_same_name(self, gateway: GatewayProcess) -> None:
        assert gateway.public.post("/v2/models/%61ffine/infer", json=AFFINE).status_code == 200
