"""The document that the public port gives of itself is whole, and true."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.api.openapi import described
from gateway.api.operations import OPERATIONS
from gateway.settings import load_settings
from gateway.state.client import connect
from gateway.wiring import Gateway
from tests.support.planes import NOWHERE
from tests.support.requests import outputs_of
from tests.support.running import GatewayProcess, clean_environment
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def document(bundled: GatewayProcess) -> dict[str, Any]:
    response = bundled.public.get("/openapi.json")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def content(document: dict[str, Any], path: str) -> Any:
    """What the operation takes."""
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]


def test_every_route_has_an_operation_and_every_operation_a_route(tmp_path: Path) -> None:
    settings = load_settings({"data_dir": tmp_path})
    with ThreadPoolExecutor(1) as executor:
        app: Any = Gateway(settings, connect(NOWHERE), b"a key for this test alone", "cpu", executor).public_app()
    assert sorted(described(app.routes)) == sorted(OPERATIONS)


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names)) > 30


def test_an_operation_has_one_meaning_for_a_status() -> None:
    for operation in OPERATIONS.values():
        statuses = [error.status for error in operation.errors]
        assert len(statuses) == len(set(statuses)), operation.id


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [v for k, v in value.items() if k == "$ref"] + [r for v in value.values() for r in references(v)]
        return [r for item in value for r in references(item)] if isinstance(value, list) else []

    found = references(document)
    assert found
    for reference in found:
        place = document
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]


def test_predictions_are_described_for_each_model_and_its_versions_and_labels(document: dict[str, Any]) -> None:
    def values(path: str) -> list[str]:
        (parameter,) = document["paths"][path]["post"]["parameters"]
        found: list[str] = parameter["schema"]["enum"]
        return found

    assert values("/v2/models/employment/versions/{version}/infer") == ["1", "2"]
    assert values("/v1/models/employment/labels/{label}:predict") == ["stable", "canary"]
    assert values("/v1/models/digits/labels/{label}:predict") == ["default"]
    assert not any("{model}" in path for path in document["paths"] if "predict" in path or "infer" in path)
    assert "AGEP, SCHL, MAR" in document["paths"]["/v2/models/employment/infer"]["post"]["description"]


def test_schemas_are_the_models_own(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["accidents.v1.request"]
    row = schema["properties"]["instances"]["items"]
    assert row["required"] == ["numeric", "categorical"]
    assert (row["properties"]["numeric"]["minItems"], row["properties"]["numeric"]["maxItems"]) == (6, 6)
    assert row["properties"]["categorical"]["items"]["anyOf"][0] == {"type": "string"}
    tensor = document["components"]["schemas"]["digits.v2.request"]["properties"]["inputs"]["items"]
    assert tensor["properties"]["name"] == {"const": "image"}
    assert tensor["properties"]["datatype"] == {"const": "FP32"}


def test_examples_are_real_rows_and_work(bundled: GatewayProcess, document: dict[str, Any]) -> None:
    """Each of them, sent to where it is an example of, is answered, and all of one model alike."""
    (row,) = content(document, "/v1/models/employment:predict")["examples"]["instances"]["value"]["instances"]
    assert row == [58, 21, 1, 0, 2, 0, 1, 1, 4, 1, 1, 2, 2, 2, 2, 1]
    for model in ("accidents", "digits", "employment"):
        infer, predict = f"/v2/models/{model}/infer", f"/v1/models/{model}:predict"
        tensors = content(document, infer)["examples"]["tensors"]["value"]
        outputs = outputs_of(bundled.public.post(infer, json=tensors))
        answers = {
            form: bundled.public.post(predict, json=example["value"]).json()
            for form, example in content(document, predict)["examples"].items()
        }
        assert answers["inputs"]["outputs"] == {"label": outputs["label"], "probability": [outputs["probability"]]}
        (prediction,) = answers["instances"]["predictions"]
        assert prediction == {"label": outputs["label"][0], "probability": outputs["probability"]}


def test_models_of_every_kind_are_described_and_their_examples_work(gateway: GatewayProcess) -> None:
    """Scalars, strings, fixed rows and every datatype; zeros where no row is known."""
    document = gateway.public.get("/openapi.json").json()
    bodies = [
        (path, example["value"])
        for path, item in document["paths"].items()
        if "post" in item and path.endswith(("/infer", ":predict")) and "{" not in path
        for example in content(document, path)["examples"].values()
    ]
    assert len(bodies) > 50

    def status(path: str, body: Any) -> int:
        return gateway.public.post(path, json=body).status_code

    refused = {path for path, body in bodies if status(path, body) != 200}
    # The logarithm of zero is infinite.
    assert {path.split("/")[3].split(":")[0] for path in refused} == {"logarithm", "unscored"}


def test_a_changed_route_shows_at_once(gateway: GatewayProcess) -> None:
    def labels() -> Any:
        document = gateway.public.get("/openapi.json").json()
        return document["paths"]["/v1/models/affine/labels/{label}:predict"]["post"]["parameters"][0]["schema"]["enum"]

    def change(*names: str) -> None:
        variants = [{"name": name, "version": "2", "weight": 100 if name == names[0] else 0} for name in names]
        tag = gateway.ops.get("/admin/routes/affine").headers["etag"]
        response = gateway.ops.put("/admin/routes/affine", json={"variants": variants}, headers={"If-Match": tag})
        assert response.status_code == 200, response.text

    assert labels() == ["default"]
    change("default", "beta")
    try:
        wait_until(lambda: labels() == ["default", "beta"])
    finally:
        change("default")
    wait_until(lambda: labels() == ["default"])


def test_schemathesis_finds_no_500_and_no_undocumented_status(bundled: GatewayProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{bundled.public_url}/openapi.json"]
    options = [
        *("--seed", "1", "--max-examples", "3", "--no-shrink", "--phases", "examples,coverage,fuzzing"),
        *("--suppress-health-check", "all", "--warnings", "off", "--generation-database", "none"),
        # `tests/support/openapi_checks.py` says the same more precisely.
        *("--exclude-checks", "not_a_server_error,positive_data_acceptance"),
        # One model's versions and labels are as good as another's, and each takes a second.
        *("--exclude-path-regex", "/models/(digits|employment)/(versions|labels)/"),
    ]
    environment = clean_environment(SCHEMATHESIS_HOOKS="tests.support.openapi_checks", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
