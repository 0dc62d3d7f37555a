"""What the collector learns of a label: whose prediction it was, what was answered, what was right."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.errors import InvalidRequest, StoreUnavailable
from gateway.serving.feedback import Feedback
from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.log_writer import LogWriter
from gateway.types import Array
from tests.support.planes import NOW, NOWHERE, Plane, plane_over

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def rows(value: float) -> dict[str, Array]:
    return {"x": np.array([[value]], np.float32)}


def feedback(plane: Plane, store: Store) -> Feedback:
    writer = LogWriter(store, prediction_bytes=1, feedback_entries=100)
    return Feedback(plane.registry, plane.routes, plane.signer, writer, plane.metrics, clock=lambda: NOW + 60)


async def stored(store: Store, model: str) -> list[dict[str, str]]:
    entries: Any = await store.xrange(keys.feedback(model))
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


@pytest.mark.parametrize(
    ("model", "value", "label", "expected"),
    [
        ("classifier", 2.0, 1, {"kind": "classification", "predicted": "1", "score": "0.880796", "label": "1"}),
        ("classifier", -2.0, "1", {"kind": "classification", "predicted": "0", "score": "0.119204", "label": "1"}),
        ("unscored", -2.0, 0, {"kind": "classification", "predicted": "0", "score": "", "label": "0"}),
        ("regression", 1.5, 4, {"kind": "regression", "predicted": "4.0", "score": "", "label": "4.0"}),
        ("regression", 1.5, -0.25, {"kind": "regression", "predicted": "4.0", "score": "", "label": "-0.25"}),
    ],
)
def test_a_label_stands_beside_what_was_predicted(
    model: str,
    value: float,
    label: Any,
    expected: dict[str, str],
    plane_models: Path,
    tmp_path: Path,
    store: Store,
    run: Run,
) -> None:
    async def scenario(plane: Plane) -> None:
        prediction_id = (await plane.predict(model, rows(value))).prediction_id
        assert await feedback(plane, store).accept({"prediction_id": prediction_id, "label": label})
        (fields,) = await stored(store, model)
        score = fields.pop("score"), expected.pop("score")
        assert score == ("", "") or float(score[0]) == pytest.approx(float(score[1]), abs=1e-4)
        assert fields == {
            **expected,
            "prediction_id": prediction_id,
            "version": "1",
            "variant": "default",
            "predicted_at": str(int(NOW)),
            "labelled_at": f"{NOW + 60:.3f}",
        }

    with plane_over(plane_models, tmp_path) as plane:
        run(scenario(plane))


@pytest.mark.parametrize("label", ["4", True, None, [4], float("nan"), float("inf")])
def test_a_regression_wants_a_number(label: Any, plane_models: Path, tmp_path: Path, store: Store, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        prediction_id = (await plane.predict("regression", rows(1.0))).prediction_id
        with pytest.raises(InvalidRequest, match="label: expected a number"):
            await feedback(plane, store).accept({"prediction_id": prediction_id, "label": label})
        assert await stored(store, "regression") == []

    with plane_over(plane_models, tmp_path) as plane:
        run(scenario(plane))


def test_a_label_of_a_variant_that_left_the_route_keeps_its_name(
    plane_models: Path, tmp_path: Path, store: Store, run: Run
) -> None:
    def document(revision: int, variant: str) -> bytes:
        variants = [{"name": variant, "version": "1", "weight": 100}]
        return orjson.dumps({"name": "classifier", "revision": revision, "variants": variants})

    async def scenario(plane: Plane) -> None:
        await store.set(keys.route("classifier"), document(1, "summer"))
        await plane.routes.refresh()
        prediction_id = (await plane.predict("classifier", rows(1.0))).prediction_id
        await store.set(keys.route("classifier"), document(2, "winter"))
        await plane.routes.refresh()
        await feedback(plane, store).accept({"prediction_id": prediction_id, "label": 1})
        assert [fields["variant"] for fields in await stored(store, "classifier")] == ["summer"]

    with plane_over(plane_models, tmp_path, store=store) as plane:
        run(scenario(plane))


def test_a_label_for_a_version_that_was_asked_for_has_no_variant(
    plane_models: Path, tmp_path: Path, store: Store, run: Run
) -> None:
    async def scenario(plane: Plane) -> None:
        prediction_id = (await plane.predict("classifier", rows(1.0), version="1")).prediction_id
        await feedback(plane, store).accept({"prediction_id": prediction_id, "label": 1})
        assert [fields["variant"] for fields in await stored(store, "classifier")] == [""]

    with plane_over(plane_models, tmp_path) as plane:
        run(scenario(plane))


def test_a_label_that_cannot_be_kept_is_not_taken(plane_models: Path, tmp_path: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        nowhere = connect(NOWHERE)
        prediction_id = (await plane.predict("classifier", rows(1.0))).prediction_id
        with pytest.raises(StoreUnavailable):
            await feedback(plane, nowhere).accept({"prediction_id": prediction_id, "label": 1})
        assert plane.counted("gateway_labels_total") == 0
        await nowhere.aclose()

    with plane_over(plane_models, tmp_path) as plane:
        run(scenario(plane))
