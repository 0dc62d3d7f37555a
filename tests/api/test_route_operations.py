"""Matches, labels and aliases over HTTP; and what ops do: roll back, compare, simulate, and meet each other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.requests import AFFINE, error_of
from tests.support.running import GatewayProcess, running
from tests.support.waiting import wait_until

PATH = "/admin/routes/affine"
INFER = "/v2/models/affine/infer"


def weights(stable: float, canary: float, **more: Any) -> dict[str, Any]:
    return {
        "variants": [
            {"name": "stable", "version": "1", "weight": stable},
            {"name": "canary", "version": "2", "weight": canary},
        ],
        **more,
    }


@pytest.fixture
def gateway(models: Path, tmp_path: Path) -> Iterator[GatewayProcess]:
    """One with a history of its own."""
    with running(models, tmp_path, "--no-collector") as started:
        yield started


def tag(gateway: GatewayProcess) -> str:
    return str(gateway.ops.get(PATH).headers["etag"])


def put(gateway: GatewayProcess, document: Any, **query: str) -> int:
    answer = gateway.ops.put(PATH, json=document, headers={"If-Match": tag(gateway)}, params=query)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["revision"])


def roll_back(gateway: GatewayProcess, body: Any = None, **query: str) -> httpx.Response:
    return gateway.ops.post(f"{PATH}/rollback", json=body or {}, headers={"If-Match": tag(gateway)}, params=query)


def version_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["model_version"])


def weight_of_canary(gateway: GatewayProcess) -> float:
    return float(gateway.ops.get(PATH).json()["variants"][1]["weight"])


class TestWhoGetsWhat:
    def test_rules_and_sticky_units_of_every_kind_decide_over_http(self, gateway: GatewayProcess) -> None:
        rules = [
            {"query": "v", "equals": "canary", "variant": "canary"},
            {"tenant": True, "in": ["acme", "globex"], "variant": "canary"},
            {"header": "x-beta", "prefix": "y", "variant": "canary"},
        ]
        put(gateway, weights(100, 0, match=rules, tenant={"header": "X-Tenant"}))
        ask = gateway.public.post
        for answer, version in (
            (ask(INFER, json=AFFINE), "1"),
            (ask(f"{INFER}?v=canary", json=AFFINE), "2"),
            (ask(f"{INFER}?v=stable&v=canary", json=AFFINE), "1"),
            (ask(INFER, json=AFFINE, headers={"X-Tenant": "globex"}), "2"),
            (ask(INFER, json=AFFINE, headers={"X-Beta": "yes"}), "2"),
            (ask(INFER, json=AFFINE, headers={"X-Beta": "no"}), "1"),
        ):
            assert version_of(answer) == version

    @pytest.mark.parametrize("kind", ["cookie", "parameter", "id"])
    def test_a_unit_keeps_its_variant(self, gateway: GatewayProcess, kind: str) -> None:
        sticky = {"id": True} if kind == "id" else {kind: "user"}
        put(gateway, weights(50, 50, sticky=sticky))

        def ask(user: str) -> str:
            body: dict[str, Any] = {"id": user} if kind == "id" else {"parameters": {"user": user}}
            headers = {"cookie": f"a=b; user={user}"} if kind == "cookie" else {}
            return version_of(gateway.public.post(INFER, json={**AFFINE, **body}, headers=headers))

        answers = {user: {ask(user) for _ in range(4)} for user in map(str, range(12))}
        assert all(len(versions) == 1 for versions in answers.values())
        assert {version for versions in answers.values() for version in versions} == {"1", "2"}

    def test_labels_and_aliases_are_other_names(self, gateway: GatewayProcess) -> None:
        put(gateway, weights(100, 0, labels={"gold": "canary"}, aliases=["jobs"]))
        ask = gateway.public.post
        assert version_of(ask("/v2/models/jobs/infer", json=AFFINE)) == "1"
        assert version_of(ask("/v2/models/jobs/versions/2/infer", json=AFFINE)) == "2"
        assert gateway.public.get("/v2/models/jobs").json()["name"] == "affine"
        assert gateway.public.get("/v2/models/jobs/ready").status_code == 200
        by_label = [
            ask(f"/v1/models/{model}/labels/{label}:predict", json={"instances": [[1, 2, 3]]}).json()
            for model in ("jobs", "affine")
            for label in ("gold", "canary")
        ]
        assert by_label == [{"predictions": [[4, 7, 10]]}] * 4
        refused = ask("/v2/models/jobs/infer", json={"inputs": []})
        assert refused.status_code == 400
        assert 'gateway_errors_total{model="affine",reason="invalid_request"}' in gateway.ops.get("/metrics").text
        assert "it is an alias of 'affine'" in error_of(gateway.ops.get("/admin/routes/jobs"), 404)

    def test_no_model_is_loaded_under_the_name_of_an_alias(self, gateway: GatewayProcess) -> None:
        put(gateway, weights(100, 0, aliases=["jobs"]))
        answer = gateway.ops.post("/v2/repository/models/jobs/load")
        assert "'jobs' is an alias of route 'affine'" in error_of(answer, 400)

    def test_an_alias_that_is_a_model_is_refused(self, gateway: GatewayProcess) -> None:
        document = weights(100, 0, aliases=["text"])
        answer = gateway.ops.put(PATH, json=document, headers={"If-Match": tag(gateway)})
        assert error_of(answer, 422).startswith("aliases[0]: 'text' is a model")


class TestRollback:
    def test_it_goes_back_and_further_back_and_never_to_what_it_took_away(self, gateway: GatewayProcess) -> None:
        for canary in (10, 20, 30):
            put(gateway, weights(100 - canary, canary))
        first = roll_back(gateway, actor="ann", reason="p99")
        assert first.headers["etag"] == '"4"' == tag(gateway)
        assert (first.json()["restored"], first.json()["passed_over"], weight_of_canary(gateway)) == (2, [], 20)
        assert (roll_back(gateway).json()["restored"], weight_of_canary(gateway)) == (1, 10)
        newest, before = gateway.ops.get(f"{PATH}/history", params={"limit": "2"}).json()["changes"]
        assert (newest["restores"], before["restores"], before["actor"], before["reason"]) == (1, 2, "ann", "p99")

    def test_before_the_first_change_was_the_default_route(self, gateway: GatewayProcess) -> None:
        put(gateway, weights(0, 100))
        document = roll_back(gateway).json()
        assert (document["restored"], document["revision"]) == (0, 2)
        assert document["variants"] == [{"name": "default", "version": "2", "weight": 100}]
        assert "has no earlier revision that could be restored" in error_of(roll_back(gateway), 404)

    def test_to_a_revision_by_number(self, gateway: GatewayProcess) -> None:
        for canary in (10, 20, 30):
            put(gateway, weights(100 - canary, canary))
        assert roll_back(gateway, {"to": 1}).json()["restored"] == 1
        assert weight_of_canary(gateway) == 10
        assert "is what is stored already" in error_of(roll_back(gateway, {"to": 1}), 422)
        assert "revisions that are: 0 to 4" in error_of(roll_back(gateway, {"to": 9}), 404)

    def test_what_can_no_longer_be_honoured_is_passed_over_or_refused(self, gateway: GatewayProcess) -> None:
        only = {"variants": [{"name": "only", "version": "1", "weight": 100}]}
        put(gateway, only, reason="good")
        put(gateway, weights(50, 50), reason="will be gone")
        put(gateway, {**only, "salt": "s"})
        unload = {"parameters": {"version": "2"}}
        assert gateway.ops.post("/v2/repository/models/affine/unload", json=unload).status_code == 200
        assert "version '2' is not loaded" in error_of(roll_back(gateway, {"to": 2}), 422)
        document = roll_back(gateway).json()
        assert document["restored"] == 1
        (skipped,) = document["passed_over"]
        assert (skipped["revision"], "version '2' is not loaded" in skipped["problem"]) == (2, True)

    @pytest.mark.parametrize("body", [b"[]", b"", b'{"to":"1"}', b'{"to":-1}', b'{"to":true}', b'{"too":1}'])
    def test_a_body_that_makes_no_sense_is_400(self, gateway: GatewayProcess, body: bytes) -> None:
        answer = gateway.ops.post(f"{PATH}/rollback", content=body, headers={"If-Match": tag(gateway)})
        assert answer.status_code == 400

    def test_it_names_what_it_changes(self, gateway: GatewayProcess) -> None:
        put(gateway, weights(90, 10))
        assert "If-Match" in error_of(gateway.ops.post(f"{PATH}/rollback", json={}), 428)
        error_of(gateway.ops.post(f"{PATH}/rollback", json={}, headers={"If-Match": '"0"'}), 412)


class TestLookingBack:
    def test_revisions_and_what_changed_between_them(self, gateway: GatewayProcess) -> None:
        for canary in (10, 20, 30):
            put(gateway, weights(100 - canary, canary))
        assert gateway.ops.get(f"{PATH}/revisions/1").json()["variants"][1]["weight"] == 10
        error_of(gateway.ops.get(f"{PATH}/revisions/7"), 404)
        error_of(gateway.ops.get(f"{PATH}/revisions/x"), 400)
        error_of(gateway.ops.get("/admin/routes/absent/revisions/1"), 404)
        for ends, old, new, before, after in (
            ({}, 2, 3, 20, 30),
            ({"from": "1"}, 1, 3, 10, 30),
            ({"from": "2", "to": "1"}, 2, 1, 20, 10),
            ({"to": "2"}, 1, 2, 10, 20),
        ):
            diff = gateway.ops.get(f"{PATH}/diff", params=ends).json()
            assert (diff["from"], diff["to"]) == (old, new)
            assert {"path": "variants.canary.weight", "before": before, "after": after} in diff["changes"]
        error_of(gateway.ops.get(f"{PATH}/diff", params={"from": "x"}), 400)
        error_of(gateway.ops.get(f"{PATH}/diff", params={"from": "9"}), 404)
        assert "no revision before 0" in error_of(gateway.ops.get("/admin/routes/text/diff"), 404)

    def test_of_many_operators_at_once_one_wins_and_the_others_are_told_what_changed(
        self, gateway: GatewayProcess
    ) -> None:
        put(gateway, weights(90, 10))
        held = tag(gateway)

        def change(canary: int) -> httpx.Response:
            headers, query = {"If-Match": held}, {"actor": f"op{canary}", "reason": "mine"}
            return gateway.ops.put(PATH, json=weights(100 - canary, canary), headers=headers, params=query)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(change, range(20, 28)))
        (winner,) = (answer for answer in answers if answer.status_code == 200)
        canary = winner.json()["variants"][1]["weight"]
        for answer in answers:
            if answer is not winner:
                message = error_of(answer, 412)
                assert f"op{canary} changed it" in message
                assert f"variants.canary.weight: 10 -> {canary}" in message
        assert len(gateway.ops.get(f"{PATH}/history").json()["changes"]) == 2


class TestSimulation:
    def simulate(self, gateway: GatewayProcess, document: Any, **query: str) -> dict[str, Any]:
        answer = gateway.ops.post(f"{PATH}/simulate", json=document, params=query)
        assert answer.status_code == 200, answer.text
        simulated: dict[str, Any] = answer.json()
        return simulated

    def test_it_says_who_would_move_and_they_do(self, gateway: GatewayProcess) -> None:
        sticky = {"header": "x-user"}
        put(gateway, weights(70, 30, sticky=sticky))
        proposed = weights(30, 70, sticky=sticky)

        def ask() -> dict[str, str]:
            users = [f"user-{number}" for number in range(40)]
            return {
                user: version_of(gateway.public.post(INFER, json=AFFINE, headers={"x-user": user})) for user in users
            }

        before = ask()
        gateway.public.post("/v2/models/affine/versions/1/infer", json=AFFINE)
        wait_until(lambda: self.simulate(gateway, proposed)["by_version"] == 1)
        said = self.simulate(gateway, proposed)
        assert weight_of_canary(gateway) == 30
        put(gateway, proposed)
        after = ask()
        moved = sum(before[user] != after[user] for user in before)
        assert (said["requests"], said["certain"], said["units"]) == (40, 40, 40)
        assert said["moves"] == [{"from": "stable", "to": "canary", "units": moved}]
        assert said["since"] <= said["until"]
        assert self.simulate(gateway, proposed, limit="7")["requests"] <= 7

    def test_an_empty_log_says_nothing(self, gateway: GatewayProcess) -> None:
        said = self.simulate(gateway, weights(50, 50))
        assert (said["requests"], said["since"], said["notes"]) == (0, None, [])

    def test_what_could_not_be_honoured_is_refused_as_a_change_would_be(self, gateway: GatewayProcess) -> None:
        answer = gateway.ops.post(f"{PATH}/simulate", json=weights(50, 51))
        assert error_of(answer, 422).startswith("variants: weights are per cent")
        error_of(gateway.ops.post("/admin/routes/absent/simulate", json=weights(50, 50)), 404)
        error_of(gateway.ops.post(f"{PATH}/simulate", json=weights(50, 50), params={"limit": "100001"}), 400)
        error_of(gateway.ops.post(f"{PATH}/simulate", content=b"[]"), 400)
