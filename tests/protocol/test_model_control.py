from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import InvalidRequest, Unsupported
from gateway.protocol.model_control import version_to_load, version_to_unload, wants_only_ready


def test_an_index_may_ask_for_what_is_ready_only() -> None:
    assert [wants_only_ready(document) for document in ({}, {"ready": False}, {"ready": True})] == [False, False, True]


@pytest.mark.parametrize("read", [version_to_load, version_to_unload])
def test_without_a_version_all_are_meant(read: Callable[[dict[str, Any]], str | None]) -> None:
    assert read({}) is None
    assert read({"parameters": {}}) is None
    assert read({"parameters": {"version": "2"}}) == "2"


def test_unloading_dependents_changes_nothing_since_there_are_none() -> None:
    assert version_to_unload({"parameters": {"unload_dependents": True}}) is None
    assert version_to_unload({"parameters": {"unload_dependents": False, "version": "1"}}) == "1"


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx"])
def test_a_model_from_elsewhere_than_the_repository_is_not_supported(name: str) -> None:
    with pytest.raises(Unsupported, match=f"parameters.{name}: a model is loaded as it lies in the model repository"):
        version_to_load({"parameters": {name: "{}"}})


@pytest.mark.parametrize(
    ("read", "document", "message"),
    [
        (wants_only_ready, {"ready": 1}, "ready: expected true or false, got 1"),
        (wants_only_ready, {"redy": True}, "redy: unknown; known: ready"),
        (version_to_load, {"version": "1"}, "version: unknown; known: parameters"),
        (version_to_load, {"parameters": []}, "parameters: expected an object, got []"),
        (version_to_load, {"parameters": {"version": 1}}, 'parameters.version: expected a string such as "1", got 1'),
        (version_to_load, {"parameters": {"unload_dependents": True}}, "parameters.unload_dependents: unknown"),
        (
            version_to_unload,
            {"parameters": {"unload_dependents": "yes"}},
            "parameters.unload_dependents: expected true",
        ),
        (version_to_unload, {"parameters": {"config": "{}"}}, "parameters.config: unknown"),
    ],
)
def test_what_is_no_such_request_is_refused(
    read: Callable[[dict[str, Any]], object], document: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(document)
    assert message in caught.value.message
