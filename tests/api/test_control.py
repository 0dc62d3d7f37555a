"""Who may change what is loaded, logged and traced, and NVIDIA's client doing it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from gateway.errors import NotFound
from tests.support import onnx_models, triton
from tests.support.doors import Doors, two_doors
from tests.support.onnx_models import write_version
from tests.support.otlp import collecting
from tests.support.requests import AFFINE, error_of, turns
from tests.support.running import GatewayProcess
from tests.support.waiting import wait_until_async

CONTROL_EXTENSIONS = {"logging", "model_repository", "model_repository(unload_dependents)"}
ANY_WHERE = [("ops", {}), ("fast", {"control_public": True})]
"""Where operators may work: always on the ops port, on the public one where it is allowed."""
SHOWN = {"trace_level": ["TIMESTAMPS"], "trace_mode": "opentelemetry", "trace_count": "-1", "log_frequency": "0"}
"""Trace settings that are on, but for the rate."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    write_version(folder, "affine", "1", onnx_models.affine(1.0))
    write_version(folder, "steady", "1", onnx_models.affine(2.0))
    write_version(folder, "busy", "1", onnx_models.busy(), "[batching]\nmax_batch_rows = 1\n")
    return folder


@pytest.fixture(autouse=True)
def _log_level_as_before() -> Iterator[None]:
    package = logging.getLogger("gateway")
    before = package.level
    yield
    package.setLevel(before)


def with_doors(models: Path, scenario: Callable[[Doors], Awaitable[None]], **options: Any) -> None:
    async def inside() -> None:
        async with two_doors(models, models.parent, **options) as doors:
            await scenario(doors)

    asyncio.run(inside())


async def talk(port: int, conversation: Callable[[Any], Any]) -> Any:
    """What comes of a conversation of NVIDIA's client, on a thread."""

    def on_thread() -> Any:
        with triton.connected(f"http://127.0.0.1:{port}") as client:
            return conversation(client)

    return await asyncio.to_thread(on_thread)


async def ask(port: int, method: str, path: str, **content: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30.0) as client:
        return await client.request(method, path, **content)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Status and message of what the client raises."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()


def infer(client: Any, model: str = "affine") -> str:
    """The version that answered."""
    result = client.infer(model, [triton.rows(1.0)], outputs=triton.outputs("y"))
    return str(result.get_response()["model_version"])


def states(client: Any) -> dict[str, str]:
    return {f"{e['name']}/{e['version']}": e["state"] for e in client.get_model_repository_index()}


async def _grown(lists: dict[str, list[int]], lengths: dict[str, int]) -> None:
    await wait_until_async(lambda: all(len(lists[name]) > length for name, length in lengths.items()))


class TestRepository:
    @pytest.mark.parametrize(("door", "options"), ANY_WHERE)
    def test_nvidias_client_loads_and_unloads(self, repository: Path, door: str, options: dict[str, Any]) -> None:
        def come_and_go(control: Any) -> None:
            assert states(control) == dict.fromkeys(["affine/1", "busy/1", "steady/1"], "READY")
            write_version(repository, "affine", "2", onnx_models.affine(3.0))
            assert states(control)["affine/2"] == "UNAVAILABLE"
            control.load_model("affine")
            assert states(control)["affine/2"] == "READY"
            control.unload_model("affine", unload_dependents=True)
            assert states(control)["affine/1"] == states(control)["affine/2"] == "UNAVAILABLE"

        async def scenario(doors: Doors) -> None:
            assert await talk(doors.fast, infer) == "1"
            await talk(getattr(doors, door), come_and_go)
            for port in (doors.fast, doors.slow):
                assert not await talk(port, lambda client: client.is_model_ready("affine"))
                status, message = await talk(port, lambda client: refusal(lambda: infer(client)))
                assert (status, message) == ("404", "unknown model 'affine'; models: busy, steady")
                assert (await ask(port, "GET", "/v2/models")).json() == {"models": ["busy", "steady"]}
            text = (await ask(doors.ops, "GET", "/metrics")).text
            assert 'gateway_model_ready{model="steady",version="1"} 1.0' in text
            assert 'gateway_model_ready{model="affine"' not in text
            await talk(getattr(doors, door), lambda client: client.load_model("affine"))
            assert await talk(doors.fast, infer) == await talk(doors.slow, infer) == "2"

        with_doors(repository, scenario, **options)

    def test_a_body_may_be_empty_or_name_a_version(self, repository: Path) -> None:
        write_version(repository, "affine", "2", onnx_models.affine(3.0))

        async def scenario(doors: Doors) -> None:
            unload = "/v2/repository/models/affine/unload"
            answer = await ask(doors.ops, "POST", unload, json={"parameters": {"version": "2"}})
            assert answer.json() == {"name": "affine", "versions": ["1"]}
            answer = await ask(doors.ops, "POST", "/v2/repository/models/affine/load")
            assert answer.json() == {"name": "affine", "versions": ["1", "2"]}
            ready = await ask(doors.ops, "POST", "/v2/repository/index", json={"ready": True})
            assert len(ready.json()) == 4

        with_doors(repository, scenario)

    def test_what_is_wrong_is_said_and_changes_nothing(self, repository: Path) -> None:
        async def scenario(doors: Doors) -> None:
            write_version(repository, "affine", "2", b"no model")

            def conversation(client: Any) -> None:
                for call, status, words in (
                    (lambda: client.load_model("affine"), "400", "affine/2/model.onnx: ONNX Runtime cannot load it"),
                    (lambda: client.load_model("absent"), "404", "the model repository holds no absent/<version>"),
                    (
                        lambda: client.load_model("affine", config="{}"),
                        "501",
                        "parameters.config: a model is loaded as",
                    ),
                    (lambda: client.unload_model("absent"), "404", "unknown model 'absent'"),
                ):
                    found, message = refusal(call)
                    assert found == status
                    assert words in message
                assert states(client)["affine/1"] == "READY"

            await talk(doors.ops, conversation)
            assert await talk(doors.fast, infer) == "1"
            path = "/v2/repository/models/affine/load"
            for content, status, words in (
                ({"json": {"parameters": {"file:1/model.onnx": "AAAA"}}}, 501, "parameters.file:1/model.onnx: "),
                ({"content": b"{"}, 400, "body: not JSON"),
                ({"content": b"x" * 5000}, 413, "the body exceeds 4096 bytes"),
                ({"json": {"parameters": {"versions": "1"}}}, 400, "parameters.versions: unknown; known: version"),
            ):
                assert words in error_of(await ask(doors.ops, "POST", path, **content), status)

        with_doors(repository, scenario)

    def test_traffic_of_others_goes_on_and_what_is_in_flight_is_answered(self, repository: Path) -> None:
        async def scenario(doors: Doors) -> None:
            statuses: dict[str, list[int]] = {"steady": [], "affine": [], "busy": []}
            stop = False

            async def hammer(port: int, model: str, document: dict[str, Any]) -> None:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                    while not stop:
                        answer = await client.post(f"/v2/models/{model}/infer", json=document)
                        statuses[model].append(answer.status_code)

            traffic = [
                asyncio.create_task(hammer(port, model, document))
                for port in (doors.fast, doors.slow)
                for model, document in (("steady", AFFINE), ("affine", AFFINE), ("busy", turns(200)))
            ]
            for _ in range(8):
                targets = {model: len(seen) + 2 for model, seen in statuses.items()}
                for model in ("affine", "busy"):
                    assert (await ask(doors.ops, "POST", f"/v2/repository/models/{model}/unload")).status_code == 200
                    assert (await ask(doors.ops, "POST", f"/v2/repository/models/{model}/load")).status_code == 200
                await _grown(statuses, targets)
            stop = True
            await asyncio.gather(*traffic)
            assert set(statuses["steady"]) == {200}
            # Not loaded is 404. What was admitted before that is 200, nothing in between.
            assert set(statuses["affine"]) | set(statuses["busy"]) <= {200, 404}

        with_doors(repository, scenario)


class TestWhoMay:
    def test_the_public_port_tells_who_may_not_where_to_go(self, gateway: GatewayProcess) -> None:
        for path in (
            "/v2/repository/models/affine/load",
            "/v2/repository/models/affine/unload",
            "/v2/logging",
            "/v2/trace/setting",
        ):
            message = error_of(gateway.public.post(path, json={}), 403)
            assert "ask the ops port" in message
            assert "--control-public" in message

    def test_looking_is_free(self, gateway: GatewayProcess) -> None:
        with triton.connected(gateway.public_url) as client:
            assert states(client)["affine/1"] == "READY"
            assert client.get_log_settings()["log_info"] is True
            assert client.get_trace_settings()["trace_level"] == ["OFF"]

    def test_only_what_is_allowed_is_advertised(self, repository: Path, gateway: GatewayProcess) -> None:
        closed = set(gateway.public.get("/v2").json()["extensions"])
        assert not closed & CONTROL_EXTENSIONS

        async def scenario(doors: Doors) -> None:
            extensions = (await talk(doors.fast, lambda client: client.get_server_metadata()))["extensions"]
            assert set(extensions) == closed | CONTROL_EXTENSIONS

        with_doors(repository, scenario, control_public=True)

    def test_the_ops_port_wants_its_token(self, repository: Path) -> None:
        token = "a token of some length"  # noqa: S105 -- of a test

        async def scenario(doors: Doors) -> None:
            error_of(await ask(doors.ops, "POST", "/v2/repository/models/affine/unload"), 401)
            headers = {"Authorization": f"Bearer {token}"}
            await talk(doors.ops, lambda client: client.unload_model("affine", headers=headers))
            with pytest.raises(NotFound):
                doors.gateway.registry.latest("affine")

        with_doors(repository, scenario, ops_token=token)


class TestLogging:
    @pytest.mark.parametrize(("door", "options"), ANY_WHERE)
    def test_nvidias_client_changes_the_level(self, repository: Path, door: str, options: dict[str, Any]) -> None:
        logging.getLogger("gateway").setLevel(logging.INFO)

        def conversation(client: Any) -> None:
            shown = client.update_log_settings({"log_verbose_level": 1})
            assert shown == {
                "log_file": "",
                "log_format": "text",
                "log_info": True,
                "log_warning": True,
                "log_error": True,
                "log_verbose_level": 1,
            }
            assert client.get_log_settings() == shown
            assert logging.getLogger("gateway.server").isEnabledFor(logging.DEBUG)
            status, message = refusal(lambda: client.update_log_settings({"log_file": "x.log", "log_info": False}))
            assert (status, message[:9]) == ("400", "log_file:")
            assert client.get_log_settings() == shown

        with_doors(repository, lambda doors: talk(getattr(doors, door), conversation), **options)


class TestTracing:
    @pytest.mark.parametrize(("door", "options"), ANY_WHERE)
    def test_nvidias_client_changes_who_is_traced(self, repository: Path, door: str, options: dict[str, Any]) -> None:
        sampled = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}

        async def scenario() -> None:
            async with collecting() as collector:
                tracing: dict[str, Any] = {"otlp_endpoint": collector.url, "trace_rate": 0.0}
                async with two_doors(repository, repository.parent, **tracing, **options) as doors:

                    async def predict(headers: dict[str, str] | None = None) -> str:
                        answer = await ask(
                            doors.fast, "POST", "/v2/models/affine/infer", json=AFFINE, headers=headers or {}
                        )
                        assert answer.status_code == 200
                        return answer.headers["prediction-id"]

                    async def update(**settings: Any) -> dict[str, Any]:
                        port = getattr(doors, door)
                        shown: dict[str, Any] = await talk(port, lambda c: c.update_trace_settings(settings=settings))
                        assert shown == await talk(port, lambda c: c.get_trace_settings())
                        assert shown == await talk(port, lambda c: c.get_trace_settings("affine"))
                        return shown

                    expected = []
                    assert await update() == {**SHOWN, "trace_rate": "0"}
                    await predict()
                    assert await update(trace_rate="1") == {**SHOWN, "trace_rate": "1"}
                    expected.append(await predict())
                    assert (await update(trace_level=["OFF"])) == {**SHOWN, "trace_level": ["OFF"], "trace_rate": "1"}
                    await predict()
                    await predict(sampled)
                    await ask(doors.fast, "POST", "/v2/models/absent/infer", json=AFFINE, headers=sampled)
                    assert await update(trace_level=None) == {**SHOWN, "trace_rate": "1"}
                    expected.append(await predict())
                    assert await update(trace_rate=None) == {**SHOWN, "trace_rate": "0"}
                    await predict()
                    expected.append(await predict(sampled))
                    extensions = (await ask(doors.fast, "GET", "/v2")).json()["extensions"]
                    assert ("trace" in extensions) == ("control_public" in options)
                # The gateway has sent everything when its doors are closed.
                found = [span.attributes.get("gateway.prediction_id") for span in collector.servers()]
                assert found == expected

        asyncio.run(scenario())

    def test_what_cannot_take_effect_is_refused_and_changes_nothing(self, repository: Path) -> None:
        async def scenario(doors: Doors) -> None:
            path = "/v2/trace/setting"
            before = (await ask(doors.ops, "GET", path)).json()
            assert before == {**SHOWN, "trace_rate": "3"}
            refused: tuple[tuple[dict[str, Any], str], ...] = (
                ({"trace_count": "5"}, "trace_count: cannot be changed"),
                ({"log_frequency": "1"}, "log_frequency: cannot be changed"),
                ({"trace_file": "x.json"}, "trace_file: cannot be changed"),
                ({"trace_mode": "triton"}, "trace_mode: cannot be changed"),
                ({"trace_level": ["TENSORS"]}, 'trace_level: expected ["TIMESTAMPS"] or ["OFF"], got [\'TENSORS\']'),
                ({"trace_level": ["TIMESTAMPS", "TENSORS"]}, "trace_level: expected"),
                ({"trace_level": "OFF"}, "trace_level: expected"),
                ({"trace_level": []}, "trace_level: expected"),
                *(
                    ({"trace_rate": rate}, "trace_rate: one request in how many, from 1 to 4294967295")
                    for rate in ("", "-1", "0.5", "²", "4294967296", "9" * 3000, 0.5, True, ["1"])
                ),
                ({"trace_rates": "1"}, "trace_rates: unknown; settings: trace_level, trace_rate, trace_mode"),
            )
            for change, words in refused:
                content = {"trace_rate": "7", "trace_level": ["OFF"], **change}
                message = error_of(await ask(doors.ops, "POST", path, json=content), 400)
                assert message.startswith(words)
                assert (await ask(doors.ops, "GET", path)).json() == before
            of_model = "/v2/models/{}/trace/setting"
            for model, status, words in (("affine", 400, "the same for all models"), ("absent", 404, "unknown model")):
                asked = await ask(doors.ops, "POST", of_model.format(model), json={"trace_rate": "7"})
                assert words in error_of(asked, status)
            error_of(await ask(doors.fast, "GET", of_model.format("absent")), 404)
            assert (await ask(doors.ops, "GET", path)).json() == before

        with_doors(repository, scenario, otlp_endpoint="http://127.0.0.1:9", trace_rate=0.3)

    def test_what_a_client_has_read_it_may_send_back(self, repository: Path) -> None:
        async def scenario(doors: Doors) -> None:
            traces = doors.gateway.plane.traces
            assert traces is not None
            shown = await talk(doors.ops, lambda client: client.get_trace_settings())
            assert await talk(doors.ops, lambda client: client.update_trace_settings(settings=shown)) == shown
            assert traces.rate == 0.3
            answer = await ask(doors.ops, "POST", "/v2/trace/setting", json={"trace_rate": 8, "trace_count": None})
            assert answer.json()["trace_rate"] == "8"
            assert traces.rate == 0.125
            await ask(doors.ops, "POST", "/v2/trace/setting", json={"trace_rate": None})
            assert traces.rate == 0.3

        with_doors(repository, scenario, otlp_endpoint="http://127.0.0.1:9", trace_rate=0.3)

    def test_without_a_collector_nothing_is_traced_and_a_change_says_what_is_missing(self, repository: Path) -> None:
        async def scenario(doors: Doors) -> None:
            shown = await talk(doors.fast, lambda client: client.get_trace_settings())
            assert shown == {**SHOWN, "trace_level": ["OFF"], "trace_rate": "0"}
            status, message = await talk(
                doors.ops,
                lambda client: refusal(lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})),
            )
            assert status == "400"
            assert "start the gateway with otlp_endpoint" in message

        with_doors(repository, scenario)
