"""`POST /v2/feedback`: a label for any prediction, taken once, by nobody who made the id up."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.support.requests import AFFINE, classify, error_of, inputs, tensor
from tests.support.running import GatewayProcess, metric


def predicted(gateway: GatewayProcess, value: float = 1.0) -> str:
    response = gateway.predict("classifier", classify(value))
    assert response.status_code == 200
    return str(response.headers["prediction-id"])


def send(gateway: GatewayProcess, document: Any) -> Any:
    content = document if isinstance(document, bytes) else orjson.dumps(document)
    return gateway.public.post("/v2/feedback", content=content)


def test_a_label_is_taken_once(gateway: GatewayProcess) -> None:
    label = {"prediction_id": predicted(gateway), "label": 1}
    assert send(gateway, label).json() == {"accepted": True, "duplicate": False}
    assert send(gateway, label).json() == {"accepted": True, "duplicate": True}
    assert send(gateway, {**label, "label": 0}).json() == {"accepted": True, "duplicate": True}


@pytest.mark.parametrize("label", [0, 1, "0", "1"])
def test_a_label_may_be_a_number_or_its_text(gateway: GatewayProcess, label: Any) -> None:
    assert send(gateway, {"prediction_id": predicted(gateway), "label": label}).status_code == 200


@pytest.mark.parametrize(
    "label", [None, True, 2, -1, "yes", "", 1.0, [1], {"label": 1}, "1" * 300, [[[[[["deep"]]]]]] * 50]
)
def test_a_label_that_the_model_cannot_answer_is_refused(gateway: GatewayProcess, label: Any) -> None:
    message = error_of(send(gateway, {"prediction_id": predicted(gateway), "label": label}), 400)
    assert message.startswith("label: expected ")
    assert len(message) < 300


def test_a_label_that_was_refused_can_be_corrected(gateway: GatewayProcess) -> None:
    prediction_id = predicted(gateway)
    error_of(send(gateway, {"prediction_id": prediction_id, "label": "maybe"}), 400)
    assert send(gateway, {"prediction_id": prediction_id, "label": "1"}).json()["duplicate"] is False


@pytest.mark.parametrize("prediction_id", [None, 7, "", "x" * 48, "A" * 47, [], {}])
def test_an_id_that_was_not_issued_is_refused(gateway: GatewayProcess, prediction_id: Any) -> None:
    assert error_of(send(gateway, {"prediction_id": prediction_id, "label": 1}), 400).startswith("prediction_id: ")


def test_a_forged_id_is_refused(gateway: GatewayProcess) -> None:
    genuine = predicted(gateway)
    forged = ("F" if genuine[10] != "F" else "G").join((genuine[:10], genuine[11:]))
    message = error_of(send(gateway, {"prediction_id": forged, "label": 1}), 400)
    assert "it was not issued here" in message


def test_an_answer_of_several_rows_cannot_be_labelled(gateway: GatewayProcess) -> None:
    response = gateway.predict("classifier", inputs(tensor("x", "FP32", [1, 2], [2, 1])))
    message = error_of(send(gateway, {"prediction_id": response.headers["prediction-id"], "label": 1}), 400)
    assert "a request with one row" in message


def test_an_answer_of_a_model_that_names_no_prediction_cannot_be_labelled(gateway: GatewayProcess) -> None:
    prediction_id = gateway.predict("affine", AFFINE).headers["prediction-id"]
    assert "cannot be labelled" in error_of(send(gateway, {"prediction_id": prediction_id, "label": 1}), 400)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: not JSON"),
        (b"[]", "body: expected a JSON object"),
        ({}, "prediction_id: "),
        ({"prediction_id": "x", "label": 1, "score": 2}, "unknown key 'score'"),
        (b"[" * 500, "body: not JSON"),
        (b'{"prediction_id":' + b"[" * 1_000 + b"]" * 1_000 + b"}", "prediction_id: "),
    ],
)
def test_a_body_of_the_wrong_form_is_refused(gateway: GatewayProcess, body: Any, message: str) -> None:
    assert error_of(send(gateway, body), 400).startswith(message)


def test_a_label_nested_a_thousand_deep_is_refused_like_any_other(gateway: GatewayProcess) -> None:
    nest = b"[" * 1_000 + b"]" * 1_000
    body = b'{"prediction_id":"%s","label":%s}' % (predicted(gateway).encode(), nest)
    assert error_of(send(gateway, body), 400).startswith("label: ")


def test_a_large_body_is_413(gateway: GatewayProcess) -> None:
    error_of(send(gateway, {"prediction_id": predicted(gateway), "label": "1" * 20_000}), 413)


def test_labels_are_counted_by_outcome(gateway: GatewayProcess) -> None:
    def counts() -> tuple[float, ...]:
        return tuple(
            metric(gateway, "gateway_labels_total", outcome=outcome) for outcome in ("accepted", "duplicate", "refused")
        )

    accepted, duplicate, refused = counts()
    label = {"prediction_id": predicted(gateway), "label": 1}
    for document in (label, label, {**label, "label": 9}):
        send(gateway, document)
    assert counts() == (accepted + 1, duplicate + 1, refused + 1)
