"""The store holds no key that nobody answers for: each has a TTL or is named in PERMANENT with the reason."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gateway.state import keys
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.requests import AFFINE, classify
from tests.support.running import GatewayProcess, metric, running
from tests.support.waiting import wait_until

WITH_TTL = {"label", "window", "verdict", "performance"}
"""Kinds of keys that expire; the rest must be in PERMANENT."""

KEY = re.compile(r"gateway:(?:\{(?P<model>[^}]+)\}:)?(?P<kind>[a-z-]+)(?::.+)?\Z")


def key_functions() -> dict[str, Any]:
    return {
        name: function
        for name, function in vars(keys).items()
        if inspect.isfunction(function) and function.__module__ == keys.__name__
    }


def sample(function: Any) -> str:
    arguments = {"model": "m", "version": "1", "prediction_id": "x"}
    return str(function(*(arguments[name] for name in inspect.signature(function).parameters)))


def kind_of(key: str) -> str:
    matched = KEY.match(key)
    assert matched is not None, f"{key} is not built as the others are"
    return matched["kind"]


@pytest.mark.parametrize("name", key_functions())
def test_every_kind_of_key_expires_or_says_why_not(name: str) -> None:
    key = sample(key_functions()[name])
    assert kind_of(key) in WITH_TTL | keys.PERMANENT.keys()


def test_no_kind_both_expires_and_is_permanent() -> None:
    assert not WITH_TTL & keys.PERMANENT.keys()


def test_every_permanent_kind_exists_and_has_a_reason() -> None:
    kinds = {kind_of(sample(function)) for function in key_functions().values()} | {kind_of(keys.ID_KEY)}
    assert keys.PERMANENT.keys() <= kinds
    assert all(keys.PERMANENT.values())


def test_all_keys_of_a_model_lie_in_one_slot_and_no_two_are_the_same() -> None:
    samples = [sample(function) for function in key_functions().values()]
    assert all(key.startswith("gateway:{m}:") for key in samples)
    assert len(set(samples)) == len(samples)


@pytest.fixture(scope="module")
def busy_store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store behind a gateway and a collector that did everything they write something for."""
    folder = tmp_path_factory.mktemp("keys")
    models = folder / "models"
    write_version(models, "affine", "1", onnx_models.affine())
    write_published_version(models, "classifier", "1", onnx_models.classifier())
    with running(models, folder / "data") as gateway:
        url = re.findall(r"unix://(\S+)", gateway.stdout)[0]
        with Redis(unix_socket_path=url) as client:
            use_everything(gateway, client)
            yield client


def use_everything(gateway: GatewayProcess, client: Redis) -> None:
    ids = [gateway.predict("classifier", classify(n - 20)).headers["prediction-id"] for n in range(40)]
    gateway.predict("affine", AFFINE)
    for prediction_id in ids[:5]:
        assert gateway.public.post("/v2/feedback", json={"prediction_id": prediction_id, "label": 1}).status_code == 200
    route = gateway.ops.get("/admin/routes/affine")
    variants = [{"name": "only", "version": "1", "weight": 100}]
    headers = {"If-Match": route.headers["etag"]}
    assert gateway.ops.put("/admin/routes/affine", json={"variants": variants}, headers=headers).status_code == 200
    client.xadd(keys.predictions("affine"), {"not": "an entry"})
    wait_until(lambda: metric(gateway, "gateway_log_written_entries_total", model="classifier"))
    # The collector counts labels, sets the foreign entry aside, and opens windows or says why it cannot.
    for key in (keys.performance("classifier"), keys.dead_letters("affine"), keys.collector("classifier")):
        wait_until(lambda: client.exists(key), 30.0)  # noqa: B023 -- waited for here


def found(client: Redis) -> dict[str, int]:
    """TTL by key; -1 for none."""
    names: Any = list(client.scan_iter())
    ttls: Any = [client.ttl(name) for name in names]
    return {name.decode(): int(ttl) for name, ttl in zip(names, ttls, strict=True)}


def test_every_key_in_a_store_that_was_used_expires_or_says_why_not(busy_store: Redis) -> None:
    store = found(busy_store)
    for key, ttl in store.items():
        kind = kind_of(key)
        assert (ttl == -1) == (kind in keys.PERMANENT), f"{key} has the TTL {ttl}"
        assert kind in WITH_TTL | keys.PERMANENT.keys()


def test_the_store_that_was_used_holds_most_kinds_of_keys(busy_store: Redis) -> None:
    kinds = {kind_of(key) for key in found(busy_store)}
    assert kinds >= {"route", "audit", "predictions", "feedback", "label", "performance", "collector", "id-key"}


def test_streams_are_capped(busy_store: Redis) -> None:
    for key in found(busy_store):
        if busy_store.type(key) == b"stream":
            assert kind_of(key) in {"audit", "predictions", "feedback", "dead-letters", "verdicts"}


def test_the_data_directory_holds_what_it_is_documented_to_hold(busy_store: Redis) -> None:
    info: Any = busy_store.config_get("dir")
    data_dir = Path(info["dir"]).parent
    assert {path.name for path in data_dir.iterdir()} == {"valkey", "id.key", "lock", "routes.json"}
