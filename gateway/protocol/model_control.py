"""Requests that change or list what is loaded (Triton's "Model Repository Extension")."""

from __future__ import annotations

from gateway.errors import InvalidRequest, Unsupported, shown
from gateway.types import JsonObject

UNLOAD_DEPENDENTS = "unload_dependents"


def wants_only_ready(document: JsonObject) -> bool:
    """Of an index request. Raises `InvalidRequest`."""
    _known_keys(document, "", {"ready"})
    return _flag(document, "ready", "ready")


def version_to_load(document: JsonObject) -> str | None:
    """Of a load request: the one version that is meant, or None for all.

    Raises `Unsupported` for a model that does not come from the repository, `InvalidRequest` for the rest.
    """
    parameters = _parameters(document)
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise Unsupported(
                f"parameters.{shown(name)[1:-1]}: a model is loaded as it lies in the model repository; put the files "
                "and `model.toml` there, then load without overrides"
            )
    _known_keys(parameters, "parameters.", {"version"})
    return _version(parameters)


def version_to_unload(document: JsonObject) -> str | None:
    """Of an unload request: the one version that is meant, or None for all. Raises `InvalidRequest`.

    `unload_dependents` may say what it likes: no model here depends on another.
    """
    parameters = _parameters(document)
    _known_keys(parameters, "parameters.", {"version", UNLOAD_DEPENDENTS})
    _flag(parameters, UNLOAD_DEPENDENTS, f"parameters.{UNLOAD_DEPENDENTS}")
    return _version(parameters)


def _parameters(document: JsonObject) -> JsonObject:
    _known_keys(document, "", {"parameters"})
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters: expected an object, got {shown(parameters)}")
    return parameters


def _version(parameters: JsonObject) -> str | None:
    version = parameters.get("version")
    if version is not None and not isinstance(version, str):
        raise InvalidRequest(f'parameters.version: expected a string such as "1", got {shown(version)}')
    return version


def _flag(document: JsonObject, name: str, path: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{path}: expected true or false, got {shown(value)}")
    return value


def _known_keys(document: JsonObject, prefix: str, known: set[str]) -> None:
    for key in document:
        if key not in known:
            raise InvalidRequest(f"{prefix}{shown(key)[1:-1]}: unknown; known: {', '.join(sorted(known))}")
