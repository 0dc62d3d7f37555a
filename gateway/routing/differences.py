"""What changed between two documents of a route, for whoever has to understand it at night."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from gateway.errors import shown
from gateway.types import JsonObject

MAX_DEPTH = 8
"""Deeper than any route; what lies below is compared as a whole."""
MAX_DIFFERENCES = 100


class Difference(NamedTuple):
    """One path with what stood and what stands there; None where nothing does."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {_text(self.before)} -> {_text(self.after)}"


def differences(before: JsonObject, after: JsonObject) -> list[Difference]:
    """In the order of the documents, without the revision, which always differs; at most `MAX_DIFFERENCES`.

    Items of a list that have names, such as variants, are compared by name.
    """
    found = (one for one in _between(before, after, "", MAX_DEPTH) if one.path != "revision")
    return [one for one, _ in zip(found, range(MAX_DIFFERENCES), strict=False)]


def _between(before: Any, after: Any, path: str, depth: int) -> Iterator[Difference]:
    old, new = _members(before), _members(after)
    if old is None or new is None or type(before) is not type(after) or depth == 0:
        if before != after:
            yield Difference(path or "document", before, after)
        return
    shared = [[key for key in members if key in old and key in new] for members in (old, new)]
    if isinstance(before, list) and shared[0] != shared[1]:
        # Of variants the first is the one that takes the holdout, and the second the one that grows.
        yield Difference(f"{path}.order", *shared)
    for key in dict.fromkeys((*old, *new)):
        below = key if isinstance(before, list) and key.startswith("[") else f".{key}"
        yield from _between(old.get(key), new.get(key), f"{path}{below}".lstrip("."), depth - 1)


def _members(value: Any) -> dict[str, Any] | None:
    """What a value consists of, by the last part of its path; None for a value without parts."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return None
    named = {item["name"]: item for item in value if isinstance(item, dict) and isinstance(item.get("name"), str)}
    return named if len(named) == len(value) else {f"[{index}]": item for index, item in enumerate(value)}


def _text(value: Any) -> str:
    return "nothing" if value is None else shown(value)
