"""What was learned is on disk after a while and when the gateway stops, and a disk that is full harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from gateway.runtime.learned import learned_file
from gateway.serving.gauges import serving_gauges
from gateway.serving.learning import Learning
from gateway.telemetry.metrics import CHOSEN_ROWS, PREDICTED_P99, PREDICTED_RUN
from gateway.types import ModelKey
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_over
from tests.support.running import running
from tests.support.versions import warm_of
from tests.support.waiting import cancel, wait_until_async

KEY = ModelKey("m", "1")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    write_version(tmp_path / "models", *KEY, onnx_models.affine())
    write_version(tmp_path / "models", "pairs", "1", onnx_models.pairs())
    with plane_over(tmp_path / "models", tmp_path) as made:
        yield made


async def predict(plane: Plane) -> None:
    await plane.predict("m", {"x": np.ones((2, 3), np.float32)})


def test_it_is_written_where_there_is_something_to_write(plane: Plane, tmp_path: Path) -> None:
    folder = tmp_path / "learned"

    async def scenario() -> None:
        learner = Learning(plane.registry, folder)
        await learner.write()
        path = learned_file(folder, KEY)
        assert orjson.loads(path.read_bytes())["circumstances"]["device"] == "cpu"
        # Nothing is known about what refuses zeros and had no traffic.
        assert not (folder / "pairs").exists()
        path.unlink()
        await learner.write()
        assert not path.exists(), "nothing had changed"
        await predict(plane)
        await learner.write()
        assert path.exists()

    asyncio.run(scenario())


def test_it_is_written_again_and_again_while_the_gateway_serves(plane: Plane, tmp_path: Path) -> None:
    path = learned_file(tmp_path / "learned", KEY)

    async def scenario() -> None:
        task = asyncio.create_task(Learning(plane.registry, tmp_path / "learned", every=0.01).run())
        for _ in range(2):
            await wait_until_async(path.exists)
            path.unlink()
            await predict(plane)
        await cancel(task)

    asyncio.run(scenario())


def test_a_disk_that_does_not_take_it_is_a_warning(
    plane: Plane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "learned").write_text("in the way")
    asyncio.run(Learning(plane.registry, tmp_path / "learned").write())
    assert "m/1 is measured anew at the next start" in caplog.text


def test_what_was_learned_is_shown_as_gauges(plane: Plane) -> None:
    read = serving_gauges(plane.registry, plane.routes, plane.loader.scheduler)
    shown = {(instrument, labels[0]): value for instrument, labels, value in read() if labels[-1:] == ("1",)}
    shape = warm_of(plane.registry.get(*KEY)).tuner.last
    assert shown[CHOSEN_ROWS, "m"] == shape.rows
    assert shown[PREDICTED_RUN, "m"] == pytest.approx(shape.cost.predict(shape.rows))
    assert shown[PREDICTED_P99, "m"] == pytest.approx(2 * shape.cost.predict_p99(shape.rows))
    assert shown[CHOSEN_ROWS, "pairs"] > 1
    assert (PREDICTED_RUN, "pairs") not in shown


def test_a_gateway_that_stops_leaves_it_for_the_next(tmp_path: Path) -> None:
    write_version(tmp_path / "models", *KEY, onnx_models.affine())
    path = learned_file(tmp_path / "data" / "learned", KEY)
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    with running(tmp_path / "models", tmp_path / "data", "--no-collector") as gateway:
        assert gateway.predict("m", body).status_code == 200
        assert gateway.stop() == 0
    first = path.read_bytes()
    path.write_bytes(b"{")
    with running(tmp_path / "models", tmp_path / "data", "--no-collector") as gateway:
        assert gateway.predict("m", body).status_code == 200
        assert gateway.stop() == 0
    assert f"{path} is not used, the version is measured anew" in gateway.log
    assert orjson.loads(path.read_bytes()).keys() == orjson.loads(first).keys()
