"""`gateway routes` against a running gateway: what ops people type at night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.requests import AFFINE
from tests.support.running import GatewayProcess, running
from tests.support.waiting import wait_until
from tests.test_cli import mistake, output, run

NAME = "affine"


@pytest.fixture(scope="module")
def gateway(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One with a history of its own."""
    with running(models, tmp_path_factory.mktemp("cli-routes"), "--no-collector") as started:
        yield started


@pytest.fixture(autouse=True)
def _two_revisions(gateway: GatewayProcess) -> None:
    output(gateway, "routes", "set", NAME, "stable=1:90", "canary=2:10", "--reason", "first taste")
    output(gateway, "routes", "set", NAME, "stable=40", "canary=60", "--actor", "ann", "--reason", "more")


def shown(gateway: GatewayProcess, *options: str) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(output(gateway, "routes", "show", NAME, *options))
    return document


def canary(document: dict[str, Any]) -> float:
    return float(document["variants"][1]["weight"])


def test_a_rollback_says_what_it_did_and_who_is_on_record(gateway: GatewayProcess) -> None:
    latest = shown(gateway)["revision"]
    text = output(gateway, "routes", "rollback", NAME, "--actor", "bob", "--reason", "p99")
    assert f"{NAME} is back to revision {latest - 1}, as revision {latest + 1}" in text
    assert canary(shown(gateway)) == 10
    assert f"back to {latest - 1}: p99" in output(gateway, "routes", "history", NAME, "--limit", "1")
    assert "bob" in output(gateway, "routes", "history", NAME, "--limit", "1")
    assert "ann" in output(gateway, "routes", "history", NAME, "--limit", "2")


def test_a_rollback_to_a_revision_by_number(gateway: GatewayProcess) -> None:
    latest = shown(gateway)["revision"]
    output(gateway, "routes", "rollback", NAME, "--to", str(latest - 1))
    assert canary(shown(gateway)) == 10
    assert "revision 999 is not among" in mistake("routes", "rollback", NAME, "--to", "999", url=gateway.ops_url)


def test_what_a_rollback_passes_over_is_a_warning(models: Path, tmp_path: Path) -> None:
    with running(models, tmp_path, "--no-collector") as gateway:
        output(gateway, "routes", "set", NAME, "only=1:100")
        output(gateway, "routes", "set", NAME, "only=1:50", "gone=2:50")
        output(gateway, "routes", "set", NAME, "other=1:100")
        gateway.ops.post(f"/v2/repository/models/{NAME}/unload", json={"parameters": {"version": "2"}})
        done = run("routes", "rollback", NAME, url=gateway.ops_url)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: revision 2 was passed over: variants[1].version: version '2' is not loaded")


def test_a_diff_names_what_changed(gateway: GatewayProcess) -> None:
    latest = shown(gateway)["revision"]
    text = output(gateway, "routes", "diff", NAME)
    assert f"revision {latest - 1}" in text
    assert "variants.canary.weight" in text
    assert "10" in text
    assert "60" in text
    assert "say the same" in output(gateway, "routes", "diff", NAME, str(latest), str(latest))
    assert f"revision {latest}" in output(gateway, "routes", "diff", NAME, str(latest), str(latest - 1))


def test_an_earlier_revision_is_shown(gateway: GatewayProcess) -> None:
    latest = shown(gateway)["revision"]
    assert canary(shown(gateway, "--revision", str(latest - 1))) == 10


def test_a_label_will_do_for_a_variant(gateway: GatewayProcess, tmp_path: Path) -> None:
    document = {**shown(gateway), "labels": {"gold": "canary"}, "sticky": {"cookie": "uid"}, "holdout": 5}
    document["match"] = [
        {"query": "v", "in": ["a", "b"], "variant": "canary"},
        {"header": "x", "present": True, "variant": "stable"},
    ]
    (tmp_path / "route.json").write_bytes(orjson.dumps(document))
    text = output(gateway, "routes", "set", NAME, "--file", str(tmp_path / "route.json"))
    assert 'query v in ["a","b"] -> canary, header x present true -> stable, sticky by cookie uid, holdout 5 %' in text
    output(gateway, "routes", "set", NAME, "stable=20", "gold=80")
    assert canary(shown(gateway)) == 80


def test_a_simulation_says_who_would_move_and_changes_nothing(gateway: GatewayProcess, tmp_path: Path) -> None:
    output(gateway, "routes", "set", NAME, "stable=100", "canary=0", "--sticky", "x-user")
    before = shown(gateway)
    for number in range(10):
        gateway.predict(NAME, AFFINE, headers={"x-user": f"simulated-{number}"})
    document = {**before, "variants": [{**one, "weight": 100 - one["weight"]} for one in before["variants"]]}
    file = tmp_path / "route.json"
    file.write_bytes(orjson.dumps(document))
    wait_until(lambda: "of 10 sticky units" in output(gateway, "routes", "simulate", str(file)))
    text = output(gateway, "routes", "simulate", str(file))
    assert "10 would move (100.00%)" in text
    assert "stable -> canary: 10" in text
    assert shown(gateway) == before
    file.write_bytes(orjson.dumps({**document, "name": "other"}))
    assert "name: expected 'affine'" in mistake("routes", "simulate", str(file), "--route", NAME, url=gateway.ops_url)
    file.write_bytes(orjson.dumps({"variants": []}))
    assert "names no route" in mistake("routes", "simulate", str(file), url=gateway.ops_url)


def test_a_log_without_routed_requests_is_said_to_be_one(gateway: GatewayProcess, tmp_path: Path) -> None:
    file = tmp_path / "route.json"
    file.write_bytes(orjson.dumps({"variants": [{"name": "default", "version": "1", "weight": 100}]}))
    assert "no routed request" in output(gateway, "routes", "simulate", str(file), "--route", "total")
