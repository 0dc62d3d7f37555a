"""The V1 protocol as clients of TensorFlow Serving and KServe meet it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.support.onnx_models import affine, identity, write_version
from tests.support.requests import error_of, inputs, outputs_of, tensor
from tests.support.running import GatewayProcess, metric, running

ROW = [58, 21, 1, 0, 2, 0, 1, 1, 4, 1, 1, 2, 2, 2, 2, 1]
ACCIDENTS: list[dict[str, list[Any]]] = [
    {"numeric": [32.9, -96.9, 1.0, 75.0, 100.0, 2.0], "categorical": ["2", "Day", "summer"]},
    {"numeric": [40.1, -80.2, 0.0, 30.5, 80.0, 10.0], "categorical": ["5", "Night", "winter"]},
]


def ask(gateway: GatewayProcess, path: str, document: Any, **headers: str) -> httpx.Response:
    content = document if isinstance(document, bytes) else orjson.dumps(document)
    return gateway.public.post(f"/v1/models/{path}", content=content, headers=headers)


def answered(response: httpx.Response) -> Any:
    """The document of a prediction that can be labelled."""
    assert response.status_code == 200, response.text
    assert len(response.headers["prediction-id"]) == 48
    return response.json()


class TestPredictions:
    def test_rows_of_a_model_with_one_input_and_one_output(self, gateway: GatewayProcess) -> None:
        response = ask(gateway, "affine:predict", {"instances": [[1, 2, 3], [0, 0, 0]]})
        assert answered(response) == {"predictions": [[4.0, 7.0, 10.0], [1.0, 1.0, 1.0]]}
        assert response.headers["content-type"] == "application/json"

    def test_columns_of_a_model_with_one_input_and_one_output(self, gateway: GatewayProcess) -> None:
        document = answered(ask(gateway, "affine:predict", {"inputs": {"x": [[1, 2, 3]]}}))
        assert document == {"outputs": [[4.0, 7.0, 10.0]]}

    def test_what_v2_answers_is_answered_by_row_and_by_column(self, bundled: GatewayProcess) -> None:
        numeric = [value for row in ACCIDENTS for value in row["numeric"]]
        categorical = [value for row in ACCIDENTS for value in row["categorical"]]
        tensors = (tensor("numeric", "FP32", numeric, [2, 6]), tensor("categorical", "BYTES", categorical, [2, 3]))
        v2 = outputs_of(bundled.predict("accidents", inputs(*tensors)))
        by_row = answered(ask(bundled, "accidents:predict", {"instances": ACCIDENTS}))
        scores = [v2["probability"][:2], v2["probability"][2:]]
        assert by_row == {
            "predictions": [
                {"label": label, "probability": score} for label, score in zip(v2["label"], scores, strict=True)
            ]
        }
        columns = {name: [row[name] for row in ACCIDENTS] for name in ("categorical", "numeric")}
        by_column = answered(ask(bundled, "accidents:predict", {"inputs": columns}))
        assert by_column == {"outputs": {"label": v2["label"], "probability": scores}}

    def test_strings_may_come_as_base64(self, gateway: GatewayProcess) -> None:
        document = answered(ask(gateway, "text:predict", {"instances": [[{"b64": "enfDtmxm"}], ["a"]]}))
        assert document == {"predictions": [["zwölf"], ["a"]]}

    def test_a_version_can_be_asked_for(self, gateway: GatewayProcess) -> None:
        response = ask(gateway, "affine/versions/1:predict", {"instances": [[1, 2, 3]]})
        assert answered(response) == {"predictions": [[3.0, 5.0, 7.0]]}

    def test_a_model_without_rows_answers(self, gateway: GatewayProcess) -> None:
        for form, answer in (("instances", "predictions"), ("inputs", "outputs")):
            assert answered(ask(gateway, "fixed:predict", {form: [[1, 2], [3, 4]]})) == {
                answer: [[1.0, 2.0], [3.0, 4.0]]
            }

    def test_a_prediction_can_be_labelled(self, bundled: GatewayProcess) -> None:
        response = ask(bundled, "employment:predict", {"instances": [ROW]})
        label = {"prediction_id": response.headers["prediction-id"], "label": 1}
        assert bundled.public.post("/v2/feedback", json=label).json() == {"accepted": True, "duplicate": False}

    def test_callers_of_both_protocols_share_runs(self, gateway: GatewayProcess) -> None:
        rows = metric(gateway, "gateway_rows_total", model="affine", version="2")
        batches = metric(gateway, "gateway_batches_total", model="affine", version="2")

        async def ask_all() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=gateway.public_url, timeout=30.0, trust_env=False) as client:
                body = {"instances": [[1, 2, 3]]}
                return await asyncio.gather(*(client.post("/v1/models/affine:predict", json=body) for _ in range(100)))

        assert {response.status_code for response in asyncio.run(ask_all())} == {200}
        assert metric(gateway, "gateway_rows_total", model="affine", version="2") == rows + 100
        assert metric(gateway, "gateway_batches_total", model="affine", version="2") < batches + 100


class TestRoutes:
    def test_the_route_decides_unless_a_label_or_a_version_does(self, bundled: GatewayProcess) -> None:
        def served(path: str) -> dict[str, Any]:
            return {
                variant: metric(bundled, "gateway_requests_total", model="employment", version=version, variant=variant)
                for variant, version in (("stable", "1"), ("canary", "2"))
            }

        for path, variant in (("employment", "stable"), ("employment/labels/canary", "canary")):
            before = served(path)
            answered(ask(bundled, f"{path}:predict", {"instances": [ROW]}))
            assert served(path) == {**before, variant: before[variant] + 1}

    def test_each_variant_takes_what_its_own_version_declares(self, two_signatures: GatewayProcess) -> None:
        for label, instance in (("numbers", [1.5, 2.5, 3.5]), ("words", ["a"])):
            document = answered(ask(two_signatures, f"mixed/labels/{label}:predict", {"instances": [instance]}))
            assert len(document["predictions"][0]) == len(instance)
            headers = {"x-kind": label}
            assert answered(ask(two_signatures, "mixed:predict", {"instances": [instance]}, **headers)) == document

    def test_an_unknown_label_is_404_with_those_that_there_are(self, bundled: GatewayProcess) -> None:
        message = error_of(ask(bundled, "employment/labels/gold:predict", {"instances": [ROW]}), 404)
        assert message == "unknown label 'gold' of model 'employment'; its route's variants and labels: stable, canary"


@pytest.fixture(scope="module")
def two_signatures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A route between versions that take different datatypes."""
    models: Path = tmp_path_factory.mktemp("mixed-models")
    write_version(models, "mixed", "1", affine())
    write_version(models, "mixed", "2", identity("BYTES", ("n", 1)))
    with running(models, tmp_path_factory.mktemp("mixed"), "--no-collector") as started:
        document = {
            "variants": [
                {"name": "numbers", "version": "1", "weight": 100},
                {"name": "words", "version": "2", "weight": 0},
            ],
            "match": [{"header": "x-kind", "equals": "words", "variant": "words"}],
        }
        response = started.ops.put("/admin/routes/mixed", json=document, headers={"If-Match": '"0"'})
        assert response.status_code == 200, response.text
        yield started


class TestMetadata:
    def test_every_model_is_listed(self, gateway: GatewayProcess) -> None:
        assert gateway.public.get("/v1/models").json() == gateway.public.get("/v2/models").json()

    @pytest.mark.parametrize(
        ("path", "versions"),
        [
            ("employment", ["1", "2"]),
            ("employment/versions/2", ["2"]),
            ("employment/labels/canary", ["2"]),
        ],
    )
    def test_a_model_is_ready_and_available(self, bundled: GatewayProcess, path: str, versions: list[str]) -> None:
        fine = {"error_code": "OK", "error_message": ""}
        assert bundled.public.get(f"/v1/models/{path}").json() == {
            "name": "employment",
            "ready": True,
            "model_version_status": [{"version": n, "state": "AVAILABLE", "status": fine} for n in versions],
        }

    def test_a_version_that_was_refused_is_listed_with_the_reason(self, tmp_path: Path) -> None:
        write_version(tmp_path / "models", "affine", "1", affine())
        write_version(tmp_path / "models", "affine", "2", b"no model")
        write_version(tmp_path / "models", "broken", "1", b"no model")
        with running(tmp_path / "models", tmp_path / "data", "--no-collector") as partly:
            one, two = partly.public.get("/v1/models/affine").json()["model_version_status"]
            assert (one["version"], one["state"]) == ("1", "AVAILABLE")
            assert (two["version"], two["state"], two["status"]["error_code"]) == ("2", "END", "UNKNOWN")
            assert "model.onnx" in two["status"]["error_message"]
            error_of(partly.public.get("/v1/models/broken"), 503)
            error_of(ask(partly, "broken:predict", {"instances": [[1, 2, 3]]}), 503)

    @pytest.mark.parametrize(
        ("path", "version"),
        [
            ("employment/metadata", "1"),
            ("employment/versions/2/metadata", "2"),
            ("employment/labels/canary/metadata", "2"),
        ],
    )
    def test_a_model_describes_itself_as_to_tensorflow_serving(
        self, bundled: GatewayProcess, path: str, version: str
    ) -> None:
        document = bundled.public.get(f"/v1/models/{path}").json()
        assert document["model_spec"] == {"name": "employment", "signature_name": "", "version": version}
        signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
        (features,) = signature["inputs"].values()
        assert features["dtype"] == "DT_FLOAT"
        assert [dimension["size"] for dimension in features["tensor_shape"]["dim"]] == ["-1", "16"]
        assert signature["outputs"].keys() == {"label", "probability"}


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "document", "status", "message"),
        [
            ("absent:predict", {"instances": [[1]]}, 404, "unknown model 'absent'; models: "),
            ("absent/labels/default:predict", {"instances": [[1]]}, 404, "unknown model 'absent'; models: "),
            ("affine/versions/9:predict", {"instances": [[1, 2, 3]]}, 404, "unknown version '9' of model 'affine'"),
            ("affine/versions/x:predict", {"instances": [[1, 2, 3]]}, 404, "unknown version 'x' of model 'affine'"),
            ("affine:predict", b"", 400, "body: not JSON"),
            ("affine:predict", {"instances": [[1, "2", 3]]}, 400, "instances[0][1]: expected FP32, got a string"),
            ("affine:predict", {"instances": [[1, 2, 3]], "id": "1"}, 400, "unknown key 'id'; known keys: instances"),
            ("affine:predict", {"inputs": {"x": []}}, 400, "inputs.x: expected lists nested as shape [-1, 3] says"),
            ("text:predict", {"inputs": [[]]}, 400, "inputs[0]: expected lists nested as shape [1] says"),
            ("busy:predict", {"instances": [[0]] * 9}, 400, "9 rows in one request; this model takes at most 8"),
            ("lookup:predict", {"instances": [7]}, 400, "the model refuses these values"),
            ("total:predict", {"instances": [[1, 2, 3]]}, 400, "instances[0]: expected lists nested as shape [2] says"),
            ("logarithm:predict", {"instances": [[-1]]}, 500, "output 'y': data[0] is nan, which JSON cannot hold"),
            ("unscored:predict", {"instances": [[-1]]}, 500, "output 'probability': data[0] is nan"),
            ("affine:explain", {"instances": [[1, 2, 3]]}, 501, "`:explain` is not supported"),
            ("affine/versions/1:classify", {"examples": []}, 501, "`:classify` is not supported"),
            ("affine:predict", b" " * 65_537, 413, "the body exceeds 65536 bytes"),
        ],
    )
    def test_the_status_table(
        self, gateway: GatewayProcess, path: str, document: Any, status: int, message: str
    ) -> None:
        response = ask(gateway, path, document)
        assert error_of(response, status).startswith(message)
        assert "prediction-id" not in response.headers

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "affine:predict", "POST"),
            ("GET", "affine/versions/1:predict", "POST"),
            ("PUT", "affine/labels/default:predict", "POST"),
            ("POST", "affine", "GET"),
            ("POST", "affine/metadata", "GET"),
            ("DELETE", "affine/versions/1", "GET"),
        ],
    )
    def test_the_wrong_verb_is_405(self, gateway: GatewayProcess, method: str, path: str, allowed: str) -> None:
        response = gateway.public.request(method, f"/v1/models/{path}")
        error_of(response, 405)
        assert allowed in response.headers["allow"]

    @pytest.mark.parametrize("path", ["absent", "absent/metadata", "affine/versions/9", "affine/labels/gold"])
    def test_what_is_unknown_is_404(self, gateway: GatewayProcess, path: str) -> None:
        assert error_of(gateway.public.get(f"/v1/models/{path}"), 404).startswith("unknown ")

    def test_errors_are_counted_by_model_and_code(self, gateway: GatewayProcess) -> None:
        before = metric(gateway, "gateway_errors_total", model="affine", reason="invalid_request")
        error_of(ask(gateway, "affine:predict", {}), 400)
        assert metric(gateway, "gateway_errors_total", model="affine", reason="invalid_request") == before + 1
