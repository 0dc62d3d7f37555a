"""What is behind a version that this process runs itself."""

from __future__ import annotations

from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.registry import ModelVersion
from gateway.runtime.session import OnnxSession
from gateway.runtime.warming import WarmModel


def warm_of(version: ModelVersion) -> WarmModel:
    """How it is run now."""
    assert version.warm is not None
    return version.warm


def batcher_of(version: ModelVersion) -> DynamicBatcher:
    """That which runs it."""
    assert isinstance(version.batcher, DynamicBatcher)
    return version.batcher


def onnx_session_of(version: ModelVersion) -> OnnxSession:
    """That which is run now."""
    assert isinstance(version.session, OnnxSession)
    return version.session
