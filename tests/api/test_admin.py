"""The ops port: routes change only as somebody who saw them meant to, and everything is on record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import INSTRUMENTS, OF_THE_SUPERVISOR
from tests.support.requests import AFFINE, classify, error_of
from tests.support.running import GatewayProcess, metric
from tests.support.waiting import wait_until

TWO = [{"name": "stable", "version": "1", "weight": 90}, {"name": "canary", "version": "2", "weight": 10}]
PATH = "/admin/routes/affine"

OF_ONE_PROCESS = [instrument for instrument in INSTRUMENTS if instrument not in OF_THE_SUPERVISOR]


@pytest.fixture(autouse=True)
def _default_route_again(gateway: GatewayProcess) -> Iterator[None]:
    yield
    everything = [{"name": "default", "version": "2", "weight": 100}]
    response = gateway.ops.put(PATH, json={"variants": everything}, headers={"If-Match": tag(gateway)})
    assert response.status_code == 200, response.text


def tag(gateway: GatewayProcess, path: str = PATH) -> str:
    return str(gateway.ops.get(path).headers["etag"])


def put(gateway: GatewayProcess, document: Any, if_match: str | None = None, **query: str) -> httpx.Response:
    headers = {"If-Match": tag(gateway) if if_match is None else if_match}
    return gateway.ops.put(PATH, json=document, headers=headers, params=query)


def patch(gateway: GatewayProcess, document: Any) -> httpx.Response:
    return gateway.ops.patch(PATH, json=document, headers={"If-Match": tag(gateway)})


def shown(gateway: GatewayProcess) -> dict[str, Any]:
    response = gateway.ops.get(PATH)
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


class TestReading:
    def test_every_model_has_a_route(self, gateway: GatewayProcess) -> None:
        routes = {route["name"]: route for route in gateway.ops.get("/admin/routes").json()["routes"]}
        assert routes.keys() == set(gateway.public.get("/v2/models").json()["models"])
        assert routes["classifier"] == {
            "name": "classifier",
            "revision": 0,
            "variants": [{"name": "default", "version": "1", "weight": 100}],
            "problem": None,
        }

    def test_one_route_comes_with_the_tag_that_a_change_must_name(self, gateway: GatewayProcess) -> None:
        response = gateway.ops.get(PATH)
        assert response.headers["etag"] == f'"{response.json()["revision"]}"'
        assert tag(gateway, "/admin/routes/classifier") == '"0"'

    @pytest.mark.parametrize(
        "path",
        ["/admin/routes/absent", "/admin/routes/absent/history", "/admin/drift/absent", "/admin/drift/absent/history"],
    )
    def test_an_unknown_model_is_404_with_what_there_is(self, gateway: GatewayProcess, path: str) -> None:
        assert "affine" in error_of(gateway.ops.get(path), 404)

    @pytest.mark.parametrize("path", ["/", "/admin", "/admin/", "/admin/routes/", "/v2", "/v2/models/affine/infer"])
    def test_an_unknown_path_is_404(self, gateway: GatewayProcess, path: str) -> None:
        assert error_of(gateway.ops.get(path), 404) == "Not Found"

    @pytest.mark.parametrize(
        ("method", "path"),
        [("POST", PATH), ("DELETE", PATH), ("PUT", "/admin/routes"), ("POST", "/metrics"), ("PUT", PATH + "/history")],
    )
    def test_the_wrong_verb_is_405(self, gateway: GatewayProcess, method: str, path: str) -> None:
        assert error_of(gateway.ops.request(method, path), 405) == "Method Not Allowed"

    def test_a_405_names_every_verb_that_works(self, gateway: GatewayProcess) -> None:
        allowed = {verb.strip() for verb in gateway.ops.delete(PATH).headers["allow"].split(",")}
        assert allowed == {"GET", "HEAD", "PUT", "PATCH"}

    @pytest.mark.parametrize("path", [PATH + "/history", "/admin/drift/affine/history"])
    @pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1.5", "²", "9" * 5_000])
    def test_a_limit_that_makes_no_sense_is_400(self, gateway: GatewayProcess, path: str, limit: str) -> None:
        assert error_of(gateway.ops.get(path, params={"limit": limit}), 400).startswith("limit: ")

    def test_drift_is_reported_by_model_and_version(self, gateway: GatewayProcess) -> None:
        report = gateway.ops.get("/admin/drift").json()["models"]
        assert {model["name"] for model in report} == set(gateway.public.get("/v2/models").json()["models"])
        (affine,) = gateway.ops.get("/admin/drift/affine").json()["models"]
        assert [version["version"] for version in affine["versions"]] == ["1", "2"]
        assert gateway.ops.get("/admin/drift/affine/history").json() == {"name": "affine", "verdicts": []}


class TestChanging:
    def test_a_change_is_in_force_when_it_is_answered(self, gateway: GatewayProcess) -> None:
        for version in ("1", "2", "1", "2"):
            answer = put(gateway, {"variants": [{"name": "only", "version": version, "weight": 100}]})
            assert answer.status_code == 200
            assert gateway.predict("affine", AFFINE).json()["model_version"] == version

    def test_a_change_gets_the_next_revision_and_its_tag(self, gateway: GatewayProcess) -> None:
        before = shown(gateway)["revision"]
        response = put(gateway, {"variants": TWO})
        assert response.json() == {"name": "affine", "revision": before + 1, "variants": TWO}
        assert response.headers["etag"] == f'"{before + 1}"' == tag(gateway)
        assert shown(gateway) == {**response.json(), "problem": None}

    def test_a_sticky_caller_keeps_its_version_while_the_canary_grows(self, gateway: GatewayProcess) -> None:
        on_canary: set[str] = set()
        users = [f"user-{number}" for number in range(60)]
        for weight in (10, 50, 100):
            variants = [{**TWO[0], "weight": 100 - weight}, {**TWO[1], "weight": weight}]
            assert put(gateway, {"variants": variants, "sticky": {"header": "X-User-Id"}}).status_code == 200
            answers = {
                user: gateway.predict("affine", AFFINE, headers={"x-user-id": user}).json()["model_version"]
                for user in users
            }
            now = {user for user, version in answers.items() if version == "2"}
            assert on_canary <= now
            on_canary = now
        assert on_canary == set(users)

    def test_a_header_match_decides_whatever_the_weights(self, gateway: GatewayProcess) -> None:
        match = [{"header": "X-Beta", "equals": "1", "variant": "canary"}]
        variants = [{**TWO[0], "weight": 100}, {**TWO[1], "weight": 0}]
        assert put(gateway, {"variants": variants, "match": match}).status_code == 200
        assert gateway.predict("affine", AFFINE, headers={"X-BETA": "1"}).json()["model_version"] == "2"
        assert gateway.predict("affine", AFFINE, headers={"X-Beta": "2"}).json()["model_version"] == "1"

    def test_a_version_in_the_path_wins_over_every_rule(self, gateway: GatewayProcess) -> None:
        put(gateway, {"variants": [{"name": "only", "version": "2", "weight": 100}]})
        assert gateway.predict("affine", AFFINE, version="1").json()["model_version"] == "1"

    def test_metadata_is_that_of_the_version_with_most_traffic(self, gateway: GatewayProcess) -> None:
        assert put(gateway, {"variants": TWO}).status_code == 200
        assert gateway.public.get("/v2/models/affine").json()["name"] == "affine"
        assert gateway.predict("affine", AFFINE, version="2").status_code == 200

    def test_a_patch_changes_what_it_names(self, gateway: GatewayProcess) -> None:
        put(gateway, {"variants": TWO, "sticky": {"header": "x-user-id"}, "salt": "s"})
        halves = [{**TWO[0], "weight": 50}, {**TWO[1], "weight": 50}]
        document = patch(gateway, {"variants": halves}).json()
        assert (document["variants"], document["sticky"], document["salt"]) == (halves, {"header": "x-user-id"}, "s")
        document = patch(gateway, {"sticky": {"header": "x-account"}}).json()
        assert (document["sticky"], document["salt"]) == ({"header": "x-account"}, "s")

    def test_null_in_a_patch_takes_away(self, gateway: GatewayProcess) -> None:
        put(gateway, {"variants": TWO, "sticky": {"header": "x-user-id"}, "salt": "s"})
        document = patch(gateway, {"sticky": None, "salt": None}).json()
        assert document.keys() == {"name", "revision", "variants"}

    def test_a_model_without_a_document_can_be_patched(self, gateway: GatewayProcess) -> None:
        path = "/admin/routes/text"
        response = gateway.ops.patch(path, json={"sticky": {"header": "x"}}, headers={"If-Match": tag(gateway, path)})
        assert response.status_code == 200
        assert response.json()["variants"] == [{"name": "default", "version": "1", "weight": 100}]

    def test_the_history_tells_who_when_why_and_what_was_before(self, gateway: GatewayProcess) -> None:
        before = shown(gateway)
        put(gateway, {"variants": TWO}, actor="ann@host", reason="first taste; für alle")
        changes = gateway.ops.get(PATH + "/history", params={"limit": "1"}).json()
        (change,) = changes["changes"]
        assert changes["name"] == "affine"
        assert (change["actor"], change["reason"]) == ("ann@host", "first taste; für alle")
        assert change["document"]["variants"] == TWO
        assert (change["before"] or {}).get("variants", before["variants"]) == before["variants"]
        assert change["changed_at"] > 1_700_000_000

    def test_somebody_without_a_name_is_known_by_address(self, gateway: GatewayProcess) -> None:
        put(gateway, {"variants": TWO})
        assert gateway.ops.get(PATH + "/history").json()["changes"][0]["actor"] == "127.0.0.1"

    @pytest.mark.parametrize("name", ["actor", "reason"])
    def test_a_novel_is_no_reason(self, gateway: GatewayProcess, name: str) -> None:
        assert error_of(put(gateway, {"variants": TWO}, **{name: "x" * 501}), 400).startswith(f"{name}: ")


class TestRefusing:
    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    def test_a_change_without_if_match_is_428(self, gateway: GatewayProcess, method: str) -> None:
        before = shown(gateway)
        assert "If-Match" in error_of(gateway.ops.request(method, PATH, json={"variants": TWO}), 428)
        assert shown(gateway) == before

    @pytest.mark.parametrize("given", ["*", "x", '"x"', "", '"1", "2"', "-1"])
    def test_an_if_match_that_is_no_revision_is_400(self, gateway: GatewayProcess, given: str) -> None:
        before = shown(gateway)
        assert error_of(put(gateway, {"variants": TWO}, given), 400).startswith("If-Match: ")
        assert shown(gateway) == before

    @pytest.mark.parametrize("spelling", ['"{}"', "{}", 'W/"{}"'])
    def test_the_spellings_of_a_tag_are_the_same(self, gateway: GatewayProcess, spelling: str) -> None:
        revision = tag(gateway).strip('"')
        assert put(gateway, {"variants": TWO}, spelling.format(revision)).status_code == 200

    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    def test_a_stale_change_is_412_and_says_who_was_faster_and_why(self, gateway: GatewayProcess, method: str) -> None:
        stale = tag(gateway)
        put(gateway, {"variants": TWO}, actor="bob@host", reason="ticket 12")
        before = shown(gateway)
        response = gateway.ops.request(method, PATH, json={"variants": TWO[:1]}, headers={"If-Match": stale})
        message = error_of(response, 412)
        assert "bob@host" in message
        assert "ticket 12" in message
        assert f"revision {before['revision']}" in message
        assert shown(gateway) == before

    @pytest.mark.parametrize(
        ("document", "path"),
        [
            ({}, "variants: "),
            ({"variants": TWO, "shadow": []}, "document: unknown key 'shadow'"),
            ({"variants": [{**TWO[0], "weight": 91}, TWO[1]]}, "variants: weights are per cent"),
            ({"variants": [TWO[0], {**TWO[1], "version": "3"}]}, "variants[1].version: version '3' is not loaded"),
            ({"variants": TWO, "name": "classifier"}, "name: "),
            ({"variants": TWO, "revision": 999}, "revision: is set by the gateway"),
            ({"variants": TWO, "sticky": {"header": "no header"}}, "sticky.header: "),
            ({"variants": TWO, "match": [{"header": "x", "equals": "1", "variant": "beta"}]}, "match[0].variant: "),
        ],
    )
    def test_an_invalid_route_is_422_with_the_path_and_changes_nothing(
        self, gateway: GatewayProcess, document: Any, path: str
    ) -> None:
        before = shown(gateway)
        history = gateway.ops.get(PATH + "/history").json()
        assert error_of(put(gateway, document), 422).startswith(path)
        assert shown(gateway) == before
        assert gateway.ops.get(PATH + "/history").json() == history

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
    def test_a_body_that_is_no_object_is_400(self, gateway: GatewayProcess, content: bytes) -> None:
        headers = {"If-Match": tag(gateway)}
        error_of(gateway.ops.put(PATH, content=content, headers=headers), 400)

    @pytest.mark.parametrize("method", ["PUT", "PATCH"])
    def test_a_document_nested_a_thousand_deep_is_refused(self, gateway: GatewayProcess, method: str) -> None:
        deep = b'{"sticky":' + b'{"header":' * 1_000 + b"1" + b"}" * 1_001
        headers = {"If-Match": tag(gateway)}
        assert gateway.ops.request(method, PATH, content=deep, headers=headers).status_code in {400, 422}

    def test_a_huge_document_is_413(self, gateway: GatewayProcess) -> None:
        error_of(put(gateway, {"variants": TWO, "salt": "x" * 300_000}), 413)

    def test_a_change_of_an_unknown_model_is_404(self, gateway: GatewayProcess) -> None:
        response = gateway.ops.put("/admin/routes/absent", json={"variants": TWO}, headers={"If-Match": '"0"'})
        assert "no route 'absent'" in error_of(response, 404)


class TestGuard:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "10.0.0.1", "[::2]:1"]
    )
    @pytest.mark.parametrize("path", ["/admin/routes", "/metrics", "/nothing"])
    def test_a_page_that_made_its_name_resolve_here_is_403(self, gateway: GatewayProcess, host: str, path: str) -> None:
        assert "loopback" in error_of(gateway.ops.get(path, headers={"Host": host}), 403)

    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:8081", "LocalHost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8081", "[::1]"]
    )
    def test_every_loopback_name_is_let_in(self, gateway: GatewayProcess, host: str) -> None:
        assert gateway.ops.get("/admin/routes", headers={"Host": host}).status_code == 200


class TestMetrics:
    def test_every_instrument_is_exposed_with_its_kind_and_help(self, gateway: GatewayProcess) -> None:
        gateway.predict("affine", AFFINE)
        response = gateway.ops.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        for instrument in OF_ONE_PROCESS:
            family = families[instrument.name.removesuffix("_total")]
            assert (family.type, family.documentation) == (instrument.kind, instrument.help)
            for sample in family.samples:
                assert set(instrument.labels) <= sample.labels.keys()

    def test_nothing_is_exposed_that_was_not_declared(self, gateway: GatewayProcess) -> None:
        families = text_string_to_metric_families(gateway.ops.get("/metrics").text)
        assert {family.name for family in families} == {i.name.removesuffix("_total") for i in OF_ONE_PROCESS}

    def test_openmetrics_is_spoken_to_who_asks(self, gateway: GatewayProcess) -> None:
        response = gateway.ops.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")

    def test_a_prediction_is_counted_once_in_everything_that_counts_it(self, gateway: GatewayProcess) -> None:
        labels = {"model": "classifier", "version": "1"}
        names = [
            "gateway_requests_total",
            "gateway_rows_total",
            "gateway_batches_total",
            "gateway_request_duration_seconds_count",
            "gateway_queue_duration_seconds_count",
            "gateway_run_duration_seconds_count",
            "gateway_batch_rows_count",
            "gateway_batch_rows_sum",
        ]
        before = {name: metric(gateway, name, **labels) for name in names}
        gateway.predict("classifier", classify(1.0))
        assert {name: metric(gateway, name, **labels) for name in names} == {n: v + 1 for n, v in before.items()}

    def test_requests_are_counted_by_the_variant_that_answered(self, gateway: GatewayProcess) -> None:
        put(gateway, {"variants": [{"name": "special", "version": "1", "weight": 100}]})
        gateway.predict("affine", AFFINE)
        gateway.predict("affine", AFFINE, version="1")
        assert metric(gateway, "gateway_requests_total", model="affine", version="1", variant="special") == 1
        assert metric(gateway, "gateway_requests_total", model="affine", version="1", variant="") >= 1

    def test_the_route_in_force_is_exposed(self, gateway: GatewayProcess) -> None:
        revision = put(gateway, {"variants": TWO}).json()["revision"]
        assert metric(gateway, "gateway_route_revision", route="affine") == revision
        assert metric(gateway, "gateway_route_weight_percent", route="affine", variant="canary", version="2") == 10
        assert metric(gateway, "gateway_route_invalid", route="affine") == 0
        assert metric(gateway, "gateway_model_ready", model="affine", version="2") == 1

    def test_every_sampled_row_reaches_the_store(self, gateway: GatewayProcess) -> None:
        before = metric(gateway, "gateway_log_written_entries_total", model="classifier")
        rows = metric(gateway, "gateway_log_sampled_rows_total", model="classifier")
        gateway.predict("classifier", classify(-1.0))
        wait_until(lambda: metric(gateway, "gateway_log_written_entries_total", model="classifier") == before + 1)
        assert metric(gateway, "gateway_log_sampled_rows_total", model="classifier") == rows + 1
        assert metric(gateway, "gateway_log_dropped_entries_total") == 0
