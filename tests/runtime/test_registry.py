from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import NotFound, StartupError, TooManyRequests, Unavailable
from gateway.runtime.registry import Loader, ModelVersion, Registry
from gateway.runtime.repository import scan
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.work import Batch
from gateway.types import ModelKey
from tests.support import onnx_models, strange_models
from tests.support.batching import Caller, answer_all
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.versions import onnx_session_of
from tests.support.waiting import wait_until_async


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def answer(_version: ModelVersion, batch: Batch) -> None:
    answer_all(batch)


def load(models: Path, executor: ThreadPoolExecutor) -> Registry:
    registry = Registry()
    Loader("cpu", 1, executor, Scheduler(2), 30.0, answer).load_all(scan(models), registry)
    return registry


def test_versions_are_found_by_name_and_number(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    for version in ["1", "2", "10"]:
        write_version(tmp_path, "m", version, onnx_models.affine(float(version)))
    registry = load(tmp_path, executor)
    assert registry.names == ["m"]
    assert registry.versions("m") == ["1", "2", "10"]
    assert registry.latest("m").key == ModelKey("m", "10")
    assert registry.get("m", "2").key == ModelKey("m", "2")
    assert len(list(registry)) == 3


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine())
    registry = load(tmp_path, executor)
    with pytest.raises(NotFound, match="unknown version '2' of model 'm'; versions: 1"):
        registry.get("m", "2")
    with pytest.raises(NotFound, match="unknown model 'n'; models: m"):
        registry.get("n", "1")
    with pytest.raises(NotFound, match="unknown model 'n'; models: m"):
        registry.latest("n")
    assert registry.versions("n") == []


def break_corrupt(models: Path) -> str:
    write_version(models, "bad", "1", b"no model")
    return "cannot load it"


def break_hash(models: Path) -> str:
    folder = write_published_version(models, "bad", "1", onnx_models.classifier())
    (folder / "model.onnx").write_bytes(onnx_models.affine())
    return "sha256 is"


def break_manifest(models: Path) -> str:
    folder = write_version(models, "bad", "1", onnx_models.classifier())
    (folder / "manifest.json").write_text("{}")
    return "name: Field required"


def break_prediction(models: Path) -> str:
    write_published_version(models, "bad", "1", onnx_models.affine())
    return "the manifest's prediction names output 'label'; outputs: y"


@pytest.mark.parametrize("breakage", [break_corrupt, break_hash, break_manifest, break_prediction])
def test_a_version_that_cannot_be_trusted_is_refused_by_name_and_the_others_serve(
    breakage: Callable[[Path], str], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    expected = breakage(tmp_path)
    write_version(tmp_path, "good", "1", onnx_models.affine())
    registry = load(tmp_path, executor)
    assert registry.names == ["good"]
    assert expected in registry.refused[ModelKey("bad", "1")]
    with pytest.raises(Unavailable, match="model bad/1 is not loaded: "):
        registry.get("bad", "1")
    with pytest.raises(Unavailable, match="model bad/1 is not loaded: "):
        registry.latest("bad")
    with pytest.raises(NotFound):
        registry.get("bad", "2")


def test_a_refused_version_does_not_hide_the_models_other_versions(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine())
    write_version(tmp_path, "m", "2", b"no model")
    registry = load(tmp_path, executor)
    assert registry.latest("m").key.version == "1"
    with pytest.raises(Unavailable):
        registry.get("m", "2")


def test_nothing_to_serve_stops_the_start_with_every_reason(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_version(tmp_path, "a", "1", b"no model")
    write_version(tmp_path, "b", "1", b"")
    with pytest.raises(StartupError, match=r"(?s)no model could be loaded: .*a/1/model\.onnx.*b/1/model\.onnx"):
        load(tmp_path, executor)


def test_the_limits_of_model_toml_reach_the_batcher(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine(), toml="[batching]\nmax_queue_rows = 2\n")
    version = load(tmp_path, executor).get("m", "1")

    async def scenario() -> None:
        version.batcher.submit(Caller({"x": np.zeros((2, 3), np.float32)}))
        with pytest.raises(TooManyRequests, match="takes at most 2"):
            version.batcher.submit(Caller({"x": np.zeros((1, 3), np.float32)}))
        await version.batcher.close()

    asyncio.run(scenario())


def test_how_model_toml_wants_a_version_run_reaches_the_session(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_version(tmp_path, "bound", "1", onnx_models.affine(), toml="[runtime]\nio_binding = true\n")
    write_version(tmp_path, "graphs", "1", onnx_models.affine(), toml="[runtime]\ncuda_graphs = true\n")
    write_version(tmp_path, "plain", "1", onnx_models.affine())
    registry = load(tmp_path, executor)
    assert onnx_session_of(registry.get("bound", "1")).bound is not None
    assert onnx_session_of(registry.get("plain", "1")).bound is None
    with pytest.raises(Unavailable, match=r"graphs/1 is not loaded: .*model\.toml asks for runtime\.cuda_graphs"):
        registry.get("graphs", "1")


def test_closing_waits_for_every_version(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    for name in ["a", "b"]:
        write_version(tmp_path, name, "1", onnx_models.affine())
    registry = load(tmp_path, executor)
    callers = [Caller({"x": np.zeros((1, 3), np.float32)}) for _ in range(2)]

    async def scenario() -> None:
        for version, caller in zip(registry, callers, strict=True):
            version.batcher.submit(caller)
        await registry.close()
        await wait_until_async(lambda: all(caller.is_answered for caller in callers), 0.0)
        for version in registry:
            with pytest.raises(Unavailable):
                version.batcher.submit(Caller({"x": np.zeros((1, 3), np.float32)}))

    asyncio.run(scenario())


def test_a_version_that_is_taken_out_is_found_no_more_and_the_rest_is(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine())
    write_version(tmp_path, "m", "2", onnx_models.identity("INT64"))
    registry = load(tmp_path, executor)
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
    assert registry.decoders["m"].decode(body, "m", None, {}) is None
    removed = registry.remove(ModelKey("m", "2"))
    assert removed.key == ModelKey("m", "2")
    assert registry.latest("m").key.version == "1"
    decoded = registry.decoders["m"].decode(body, "m", None, {})
    assert decoded is not None
    assert decoded[0].fits is registry.get("m", "1").signature
    with pytest.raises(NotFound, match="unknown version '2' of model 'm'; versions: 1"):
        registry.remove(ModelKey("m", "2"))
    registry.remove(ModelKey("m", "1"))
    assert registry.names == registry.versions("m") == []
    assert list(registry) == []
    assert registry.decoders == {}
    with pytest.raises(NotFound, match="unknown model 'm'; models: none"):
        registry.latest("m")


def test_a_version_that_loads_after_all_is_no_longer_refused(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine())
    folder = write_version(tmp_path, "m", "2", b"no model")
    registry = load(tmp_path, executor)
    (folder / "model.onnx").write_bytes(onnx_models.affine())
    registry.add(Loader("cpu", 1, executor, Scheduler(2), 30.0, answer).load(scan(tmp_path)[1]))
    assert registry.refused == {}
    assert registry.get("m", "2").signature is registry.get("m", "1").signature


def test_looking_at_every_version_survives_a_change_meanwhile(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    for version in ("1", "2"):
        write_version(tmp_path, "m", version, onnx_models.affine())
    registry = load(tmp_path, executor)
    seen = []
    for loaded in registry:
        seen.append(loaded.key.version)
        registry.remove(loaded.key)
    assert seen == ["1", "2"]


def test_a_closed_version_answers_what_is_in_flight_and_then_frees_its_session(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine())
    version = load(tmp_path, executor).get("m", "1")
    session = weakref.ref(onnx_session_of(version)._session)
    caller = Caller({"x": np.zeros((1, 3), np.float32)})

    async def scenario() -> None:
        version.batcher.submit(caller)
        await version.close()

    asyncio.run(scenario())
    assert len(caller.answer) == 1
    assert session() is None


def test_axes_that_the_graph_contradicts_keep_a_version_out_with_the_reason(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    write_version(tmp_path, "good", "1", onnx_models.affine())
    write_version(tmp_path, "bad", "1", onnx_models.affine(), "[batching.axes]\nx = 1\ny = 1\n")
    registry = load(tmp_path, executor)
    reason = "model.toml: batching.axes.x: axis 1 of shape [-1, 3] is not variable (-1)"
    assert registry.refused == {ModelKey("bad", "1"): reason}


def test_a_version_is_tuned_with_the_rows_on_their_axes(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_version(tmp_path, "m", "1", strange_models.running_total(("p", "q")))
    version = load(tmp_path, executor).get("m", "1")
    assert version.layout.shares_runs
    assert [spec.axis for spec in onnx_session_of(version).signature.inputs] == [1]
    assert onnx_session_of(version).warm_up(5) is not None
