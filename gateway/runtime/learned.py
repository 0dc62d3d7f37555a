"""What was learned about a model version, on disk: `<data_dir>/learned/<model>/<version>.json`.

It holds for the same model file on the same kind of machine only. What does not fit, or cannot be read, is passed over
with a line in the log: the version is then measured as if it were new.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import orjson
from pydantic import Field, ValidationError

from gateway.runtime.cost_model import MEMORY, CostModel, SizeClass
from gateway.runtime.manifest import Document, explain
from gateway.runtime.tuner import MAX_SHAPES, ShapeTuner, Tuner
from gateway.runtime.tuning import CoreUse
from gateway.types import ModelKey

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**20
MAX_CLASSES = 64

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


class Circumstances(Document):
    """What the run times depend on besides the rows."""

    sha256: str
    """Of the model file."""
    device: str
    onnxruntime: str
    """Its version."""
    cores: int


class LearnedSize(Document):
    """A `SizeClass`."""

    runs: Annotated[int, Field(ge=1, le=MEMORY)]
    rows: Positive
    seconds: Positive
    cpu_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LearnedShape(Document):
    """A `ShapeTuner`."""

    bucket: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]
    p99_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    pace: Positive
    sizes: Annotated[tuple[LearnedSize, ...], Field(max_length=MAX_CLASSES)]


class LearnedState(Document):
    """The whole file."""

    format: Literal[1] = 1
    circumstances: Circumstances
    runs: Count
    threads: Count
    shapes: Annotated[tuple[LearnedShape, ...], Field(min_length=1, max_length=MAX_SHAPES)]
    """The one that was run last stands last."""

    @property
    def core_use(self) -> CoreUse:
        """How the cores were used."""
        return CoreUse(self.runs, self.threads)

    @property
    def is_of_use(self) -> bool:
        """Whether there is anything in it that a measurement at load would not find as well."""
        return any(shape.sizes for shape in self.shapes)

    def restore(self, tuner: Tuner) -> None:
        """Give a new tuner all that is known."""
        for shape in self.shapes:
            cost = CostModel()
            for size in shape.sizes:
                cost.restore(SizeClass(size.runs, size.rows, size.seconds, size.cpu_seconds))
            cost.p99_ratio, cost.pace = shape.p99_ratio, shape.pace
            tuner.add(shape.bucket, ShapeTuner(tuner.policy, cost))


def remember(circumstances: Circumstances, core_use: CoreUse, tuner: Tuner) -> LearnedState:
    """The state to be written; `tuner` is not used by another thread meanwhile."""
    return LearnedState(
        circumstances=circumstances,
        runs=core_use.runs,
        threads=core_use.threads,
        shapes=tuple(
            LearnedShape(
                bucket=bucket,
                p99_ratio=shape.cost.p99_ratio,
                pace=shape.cost.pace,
                sizes=tuple(LearnedSize(**asdict(size)) for size in shape.cost.classes),
            )
            for bucket, shape in tuner.shapes.items()
        ),
    )


def learned_file(folder: Path, key: ModelKey) -> Path:
    """Where a version's state lies below the data directory's `learned`."""
    return folder / key.name / f"{key.version}.json"


def read_learned(path: Path, circumstances: Circumstances, core_uses: Sequence[CoreUse]) -> LearnedState | None:
    """What was learned in these circumstances and with one of these core_uses; None, and why in the log, if nothing."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        state = LearnedState.model_validate(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        logger.warning("%s is not used, the version is measured anew: %s", path, explain(error))
        return None
    if state.circumstances != circumstances:
        logger.info("%s is not used: the model, the device, the cores or ONNX Runtime's version changed", path)
        return None
    if state.core_use not in core_uses:
        logger.info("%s is not used: it was learned with %s", path, state.core_use)
        return None
    return state


def write_learned(path: Path, state: LearnedState) -> None:
    """Replace the file in one step, so that a reader finds the old one or the new. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(state.model_dump(), option=orjson.OPT_INDENT_2))
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
