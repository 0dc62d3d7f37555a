"""The answer inside the outputs: class label and score, or value, as the manifest's `prediction` names them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gateway.errors import StartupError
from gateway.prediction_id import SummaryKind, class_summary, value_summary
from gateway.protocol.datatypes import BYTES
from gateway.runtime.manifest import Prediction
from gateway.types import Array, Signature

MAX_CLASS = 0xFFFE


def answer_column(prediction: Prediction, outputs: Mapping[str, Array]) -> Array:
    """Class labels or values, shape [rows]."""
    array = outputs[prediction.output]
    return array.reshape(array.shape[0], -1)[:, 0]


def score_column(prediction: Prediction, outputs: Mapping[str, Array]) -> Array | None:
    """Probability of the positive class of two, of the likeliest of more; shape [rows]. None without a score."""
    if prediction.score is None:
        return None
    array = outputs[prediction.score]
    scores = array.reshape(array.shape[0], -1)
    return scores[:, -1] if scores.shape[1] <= 2 else scores.max(axis=1)


class AnswerReader:
    """Reads the answers of one model version and packs them for its prediction ids."""

    def __init__(self, prediction: Prediction, signature: Signature) -> None:
        """Raises `StartupError` if the manifest names an output that is not there, or strings for numbers."""
        self.prediction = prediction
        self.kind = SummaryKind.CLASS if prediction.kind == "classification" else SummaryKind.VALUE
        datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        for name in filter(None, (prediction.output, prediction.score)):
            if name not in datatypes:
                raise StartupError(f"the manifest's prediction names output {name!r}; outputs: {', '.join(datatypes)}")
        numeric = prediction.output if self.kind is SummaryKind.VALUE else prediction.score
        if numeric is not None and datatypes[numeric] == BYTES:
            raise StartupError(f"the manifest's prediction needs numbers; output {numeric!r} holds strings")
        self._names = list(datatypes)
        self._index = {label: index for index, label in enumerate(prediction.classes or ())}

    def summaries(self, outputs: list[Array]) -> list[int | None]:
        """A prediction id's summary for each row; None where the answer has no place in one."""
        named = dict(zip(self._names, outputs, strict=True))
        answers = answer_column(self.prediction, named)
        if self.kind is SummaryKind.VALUE:
            with np.errstate(over="ignore"):
                values = answers.astype(np.float32)
            return [value_summary(value) if math.isfinite(value) else None for value in values.tolist()]
        scores = score_column(self.prediction, named)
        score_list = [None] * len(answers) if scores is None else scores.tolist()
        return [
            None if (index := self._class_index(label)) is None else class_summary(index, score)
            for label, score in zip(answers.tolist(), score_list, strict=True)
        ]

    def answer_text(self, index: int) -> str:
        """The class label that a summary's index stands for."""
        classes = self.prediction.classes
        return classes[index] if classes is not None and index < len(classes) else str(index)

    def _class_index(self, label: object) -> int | None:
        if self._index:
            return self._index.get(str(label))
        return label if isinstance(label, int) and 0 <= label <= MAX_CLASS else None
