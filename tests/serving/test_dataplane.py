"""One request, one reply, and an id that says how it came about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.prediction_id import SummaryKind, name_hash
from gateway.routing.route import bucket_of
from gateway.serving.call import Call
from gateway.state import keys
from gateway.state.client import Store
from gateway.types import Array, InferenceRequest, InferenceResponse
from tests.support import strange_models
from tests.support.manifests import write_published_version
from tests.support.planes import NOW, Plane, plane_over
from tests.support.waiting import wait_until_async

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


@pytest.fixture
def plane(plane_models: Path, tmp_path: Path) -> Any:
    with plane_over(plane_models, tmp_path) as made:
        yield made


def test_an_id_tells_route_variant_version_time_class_and_score(plane: Plane, run: Run) -> None:
    response = run(plane.predict("classifier", rows(2.0)))
    decoded = plane.signer.verify(response.prediction_id)
    assert decoded.route_hash == name_hash("classifier")
    assert decoded.variant_hash == name_hash("default")
    assert (decoded.revision, decoded.version, decoded.predicted_at) == (0, "1", int(NOW))
    assert (decoded.kind, decoded.class_index) == (SummaryKind.CLASS, 1)
    assert decoded.score == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-4)


def test_an_id_of_a_regression_tells_the_value(plane: Plane, run: Run) -> None:
    decoded = plane.signer.verify(run(plane.predict("regression", rows(1.5))).prediction_id)
    assert (decoded.kind, decoded.value) == (SummaryKind.VALUE, 4.0)


def test_callers_who_share_a_run_get_the_ids_of_their_own_answers(plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        values = [-3.0, 3.0, -1.0, 1.0, 2.0]
        responses = await asyncio.gather(*(plane.predict("classifier", rows(value)) for value in values))
        for value, response in zip(values, responses, strict=True):
            decoded = plane.signer.verify(response.prediction_id)
            assert decoded.class_index == int(value > 0)
            assert decoded.score == pytest.approx(1 / (1 + np.exp(-value)), abs=1e-4)

    run(scenario())


def test_an_answer_of_several_rows_or_without_a_prediction_has_no_summary(plane: Plane, run: Run) -> None:
    for model, inputs in (("classifier", rows(1.0, 2.0)), ("affine", {"x": np.ones((1, 3), np.float32)})):
        decoded = plane.signer.verify(run(plane.predict(model, inputs)).prediction_id)
        assert decoded.kind is SummaryKind.NONE


def test_a_version_that_was_asked_for_belongs_to_no_variant(plane: Plane, run: Run) -> None:
    response = run(plane.predict("affine", {"x": np.ones((1, 3), np.float32)}, version="1"))
    decoded = plane.signer.verify(response.prediction_id)
    assert (response.key.version, decoded.version, decoded.revision) == ("1", "1", 0)
    assert decoded.variant_hash == name_hash("")


def test_a_score_that_is_no_number_costs_nobody_the_answer(plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        responses = await asyncio.gather(*(plane.predict("unscored", rows(value)) for value in (1.0, -1.0, 2.0)))
        assert [plane.signer.verify(response.prediction_id).class_index for response in responses] == [1, 0, 1]
        assert plane.signer.verify(responses[1].prediction_id).score is None

    run(scenario())


def test_what_is_refused_is_refused_at_once_and_not_replied_to(plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        for model, version, inputs, error in (
            ("absent", None, rows(1.0), NotFound),
            ("affine", "9", rows(1.0), NotFound),
            ("affine", None, rows(1.0), InvalidRequest),
        ):
            replies: list[InferenceResponse | GatewayError] = []
            with pytest.raises(error):
                _, replies = plane.submit(model, inputs, version)
            await asyncio.sleep(0)
            assert replies == []

    run(scenario())


def test_every_call_gets_exactly_one_reply(plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        indices = [0, 9, 1, 9, 2, 3]
        calls = [plane.submit("lookup", {"index": np.array([index], np.int64)}) for index in indices]
        await plane.registry.close()
        for index, (_, replies) in zip(indices, calls, strict=True):
            (reply,) = replies
            assert isinstance(reply, InvalidRequest) if index == 9 else isinstance(reply, InferenceResponse)

    run(scenario())


def test_who_left_gets_no_reply(plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        call, replies = plane.submit("classifier", rows(1.0))
        _, others = plane.submit("classifier", rows(2.0))
        call.cancel()
        await wait_until_async(lambda: others)
        await plane.registry.close()
        assert replies == []
        assert len(others) == 1

    run(scenario())


def test_routes_in_force_decide_and_are_named_in_the_id(
    plane_models: Path, tmp_path: Path, store: Store, run: Run
) -> None:
    document = {
        "name": "affine",
        "revision": 12,
        "variants": [{"name": "old", "version": "1", "weight": 100}, {"name": "new", "version": "2", "weight": 0}],
        "match": [{"header": "x-beta", "equals": "1", "variant": "new"}],
    }

    async def scenario(plane: Plane) -> None:
        await store.set(keys.route("affine"), orjson.dumps(document))
        await plane.routes.refresh()
        for headers, variant, version in (({}, "old", "1"), ({"x-beta": "1"}, "new", "2")):
            response = await plane.predict("affine", {"x": np.ones((1, 3), np.float32)}, headers=headers)
            decoded = plane.signer.verify(response.prediction_id)
            assert (response.key.version, decoded.version, decoded.revision) == (version, version, 12)
            assert decoded.variant_hash == name_hash(variant)
            assert plane.counted("gateway_requests_total", model="affine", variant=variant) == 1

    with plane_over(plane_models, tmp_path, store=store) as plane:
        run(scenario(plane))


def test_an_id_tells_the_answer_of_its_own_row_wherever_rows_lie(tmp_path: Path, run: Run) -> None:
    models = tmp_path / "models"
    prediction = {"kind": "regression", "output": "greatest"}
    write_published_version(models, "turned", "1", strange_models.turned(), prediction=prediction)
    inputs = [{"x": np.array([[[value]], [[-value]]], np.int64)} for value in (3, 5, 7)]

    async def scenario(plane: Plane) -> list[InferenceResponse]:
        return list(await asyncio.gather(*(plane.predict("turned", sent) for sent in inputs)))

    with plane_over(models, tmp_path) as plane:
        responses = run(scenario(plane))
        values = [plane.signer.verify(response.prediction_id).value for response in responses]
    assert values == [3.0, 5.0, 7.0]
    assert [{spec.name: array.tolist() for spec, array in response.outputs} for response in responses] == [
        {"y": [[[value, -value]]], "greatest": [[value]]} for value in (3, 5, 7)
    ]


def affine_route(**more: Any) -> dict[str, Any]:
    variants = [{"name": "old", "version": "1", "weight": 100}, {"name": "new", "version": "2", "weight": 0}]
    return {"name": "affine", "revision": 12, "variants": variants, **more}


ONE_ROW = {"x": np.ones((1, 3), np.float32)}


class TestWhatRoutesLookAt:
    def put(self, plane: Plane, store: Store, run: Run, document: dict[str, Any]) -> None:
        async def write() -> None:
            await store.set(keys.route("affine"), orjson.dumps(document))
            await plane.routes.refresh()

        run(write())
        assert plane.routes.problems == {}

    def test_a_unit_may_be_the_id_or_a_parameter(
        self, plane_models: Path, tmp_path: Path, store: Store, run: Run
    ) -> None:
        with plane_over(plane_models, tmp_path, store=store) as plane:
            for sticky, facts in (({"id": True}, {"id": "7"}), ({"parameter": "user"}, {"parameters": {"user": 7}})):
                self.put(plane, store, run, affine_route(sticky=sticky))
                call = Call(lambda _: None)
                plane.plane.choose(call, InferenceRequest("affine", None, {}, **facts), {})
                assert call.decision is not None
                assert call.decision.bucket == bucket_of("affine", "7")

    def test_a_rule_may_look_at_the_query(self, plane_models: Path, tmp_path: Path, store: Store, run: Run) -> None:
        rules = [{"query": "v", "equals": "new", "variant": "new"}]
        with plane_over(plane_models, tmp_path, store=store) as plane:
            self.put(plane, store, run, affine_route(match=rules))
            for query, variant in (("v=new", "new"), ("v=old", "old"), ("", "old")):
                call = Call(lambda _: None)
                call.query = query
                assert plane.plane.choose(call, InferenceRequest("affine", None, {}), {}).variant == variant

    def test_a_random_route_decides_nothing_that_is_remembered(self, plane: Plane) -> None:
        call = Call(lambda _: None)
        assert plane.plane.choose(call, InferenceRequest("affine", None, {}), {}).units == ""
        assert call.decision is None

    def test_an_alias_is_the_model_under_another_name(
        self, plane_models: Path, tmp_path: Path, store: Store, run: Run
    ) -> None:
        with plane_over(plane_models, tmp_path, store=store) as plane:
            self.put(plane, store, run, affine_route(aliases=["jobs"], labels={"gold": "new"}))
            for version, answered in ((None, "1"), ("2", "2")):
                response = run(plane.predict("jobs", ONE_ROW, version))
                assert (response.key.name, response.key.version) == ("affine", answered)
            assert plane.plane.labelled("jobs", "gold").version.key.version == "2"
            assert (plane.plane.counted_as("jobs"), plane.plane.counted_as("absent")) == ("affine", "")
            with pytest.raises(NotFound, match=r"unknown label 'silver' of model 'jobs'; .*: old, new, gold"):
                plane.plane.labelled("jobs", "silver")
            self.put(plane, store, run, affine_route(revision=13))
            with pytest.raises(NotFound, match="unknown model 'jobs'"):
                run(plane.predict("jobs", ONE_ROW))
