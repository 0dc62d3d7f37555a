"""Models whose rows lie elsewhere than on axis 0, hold for all, or are padded: logged with the rows on axis 0."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np

from gateway.protocol import log_codec
from gateway.protocol.log_codec import LogEntry
from tests.support import strange_models
from tests.support.onnx_models import write_version
from tests.support.planes import FakeWriter, Plane, plane_over

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def decoded(writer: FakeWriter) -> list[LogEntry]:
    return [log_codec.decode(fields) for _, fields in writer.entries]


def strange_plane(folder: Path, writer: FakeWriter) -> Any:
    models = folder / "models"
    write_version(models, "recurrent", "1", strange_models.recurrent())
    write_version(models, "resampled", "1", strange_models.resampled())
    write_version(models, "encoder", "1", strange_models.encoder(), strange_models.PADDED_ENCODER)
    return plane_over(models, folder, writer=writer)


def test_rows_on_other_axes_are_logged_on_axis_0(tmp_path: Path, run: Run) -> None:
    writer = FakeWriter()
    states = [np.full((2, rows, 3), rows, np.float32) for rows in (1, 2)]

    async def scenario(plane: Plane) -> None:
        callers = [{"x": np.zeros((state.shape[1], 3), np.float32), "state": state} for state in states]
        await asyncio.gather(*(plane.predict("recurrent", inputs) for inputs in callers))
        await plane.log.flush()

    with strange_plane(tmp_path, writer) as plane:
        run(scenario(plane))
    (entry,) = decoded(writer)
    assert [request.rows for request in entry.requests] == [1, 2]
    assert entry.inputs["state"].tolist() == [[[rows] * 3] * 2 for rows in (1, 2, 2)]
    assert entry.outputs["y"].tolist() == [[rows] * 3 for rows in (1, 2, 2)]
    assert entry.outputs["new_state"].tolist() == [[[rows / 2] * 3] * 2 for rows in (1, 2, 2)]


def test_what_holds_for_all_rows_is_logged_for_each(tmp_path: Path, run: Run) -> None:
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        inputs = {"signal": np.ones((3, 2), np.float32), "rate": np.array(8, np.float32)}
        await plane.predict("resampled", inputs)
        await plane.log.flush()

    with strange_plane(tmp_path, writer) as plane:
        run(scenario(plane))
    (entry,) = decoded(writer)
    assert entry.inputs["rate"].tolist() == [8, 8, 8]


def test_padded_sequences_are_logged_as_the_run_had_them(tmp_path: Path, run: Run) -> None:
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        callers = [{"tokens": np.ones((1, length), np.int64)} for length in (3, 4)]
        await asyncio.gather(*(plane.predict("encoder", inputs) for inputs in callers))
        await plane.log.flush()

    with strange_plane(tmp_path, writer) as plane:
        run(scenario(plane))
    (entry,) = decoded(writer)
    assert entry.inputs["tokens"].tolist() == [[1, 1, 1, 7], [1, 1, 1, 1]]
    assert entry.inputs.keys() == {"tokens"}
    assert entry.outputs["hidden"].shape == (2, 4)
