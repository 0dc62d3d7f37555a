"""Labels for predictions, on their way to the collector.

The prediction id says which model, version and variant answered and what the answer was, so a label needs no look-up,
and any prediction, sampled or not, can have one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from gateway.errors import InvalidRequest, shown
from gateway.prediction_id import IdSigner, PredictionId, SummaryKind, name_hash
from gateway.runtime.registry import ModelVersion, Registry
from gateway.serving.route_table import RouteTable
from gateway.state.log_writer import LogWriter
from gateway.telemetry.metrics import LABELS, GatewayMetrics
from gateway.types import JsonObject

MAX_LABEL_LENGTH = 256


class Feedback:
    """Checks a label against its prediction id and appends it to the model's feedback stream."""

    def __init__(
        self,
        registry: Registry,
        routes: RouteTable,
        signer: IdSigner,
        writer: LogWriter,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._routes = routes
        self._signer = signer
        self._writer = writer
        self._metrics = metrics
        self._clock = clock

    async def accept(self, document: JsonObject) -> bool:
        """Take `{"prediction_id": ..., "label": ...}`; False if this prediction has its label already.

        Raises `InvalidRequest` naming the field, `StoreUnavailable` if the label could not be kept.
        """
        try:
            prediction, version, label = self._check(document)
        except InvalidRequest:
            self._metrics.count(LABELS, "", "refused")
            raise
        fields = {
            "prediction_id": str(document["prediction_id"]),
            "version": version.key.version,
            "variant": self._variant_name(prediction),
            "kind": "classification" if prediction.kind is SummaryKind.CLASS else "regression",
            "predicted": _predicted(prediction, version),
            "score": "" if prediction.score is None else f"{prediction.score:.6f}",
            "label": label,
            "predicted_at": str(prediction.predicted_at),
            "labelled_at": f"{self._clock():.3f}",
        }
        is_new = await self._writer.append_label(version.key.name, fields["prediction_id"], fields)
        self._metrics.count(LABELS, version.key.name, "accepted" if is_new else "duplicate")
        return is_new

    def _check(self, document: JsonObject) -> tuple[PredictionId, ModelVersion, str]:
        unknown = document.keys() - {"prediction_id", "label"}
        if unknown:
            raise InvalidRequest(f"unknown key {shown(min(unknown))}; expected prediction_id and label")
        text = document.get("prediction_id")
        if not isinstance(text, str):
            raise InvalidRequest("prediction_id: expected the value of an answer's Prediction-Id header")
        prediction = self._signer.verify(text)
        version = self._version(prediction)
        if prediction.kind is SummaryKind.NONE:
            raise InvalidRequest(
                "prediction_id: this answer cannot be labelled: labels need a request with one row "
                "to a model whose manifest names its prediction"
            )
        return prediction, version, _label(document.get("label"), version)

    def _version(self, prediction: PredictionId) -> ModelVersion:
        for version in self._registry:
            if name_hash(version.key.name) == prediction.route_hash and version.key.version == prediction.version:
                return version
        raise InvalidRequest("prediction_id: its model version is no longer loaded here")

    def _variant_name(self, prediction: PredictionId) -> str:
        if prediction.variant_hash == name_hash(""):
            return ""
        return self._routes.variant_name(prediction.variant_hash)


def _predicted(prediction: PredictionId, version: ModelVersion) -> str:
    if prediction.kind is SummaryKind.VALUE:
        return repr(prediction.value)
    assert version.answers is not None and prediction.class_index is not None  # noqa: PT018, S101 -- kind is CLASS
    return version.answers.answer_text(prediction.class_index)


def _label(value: Any, version: ModelVersion) -> str:
    """The label as text, checked against what the model can answer."""
    prediction = version.manifest.prediction if version.manifest else None
    if prediction is not None and prediction.kind == "regression":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequest(f"label: expected a number, got {shown(value)}")
        return repr(float(value))
    if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > MAX_LABEL_LENGTH:
        raise InvalidRequest(f"label: expected a class label (a whole number or a string), got {shown(value)}")
    classes = prediction.classes if prediction is not None else None
    if classes is not None and str(value) not in classes:
        raise InvalidRequest(f"label: expected one of {', '.join(classes)}, got {shown(str(value))}")
    return str(value)
