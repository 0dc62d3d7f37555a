"""What a route looks at in a request, and the conditions of its match rules.

Of equal names the first counts, everywhere. What is there and empty is there for a match, and no unit for stickiness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import parse_qsl

import orjson

from gateway.types import JsonObject

Kind: TypeAlias = Literal["header", "query", "cookie", "parameter", "id"]

NOTHING: Mapping[str, Any] = MappingProxyType({})


class RequestFacts(NamedTuple):
    """What some routes look at besides the headers."""

    query: Mapping[str, str] = NOTHING
    """Parameters of the URL."""
    parameters: Mapping[str, Any] = NOTHING
    """The JSON request's own: strings, numbers and bools."""
    id: str | None = None


NO_FACTS = RequestFacts()


def query_parameters(query: str) -> dict[str, str]:
    """Those of a URL's query, which is read once however many rules look at it."""
    return dict(reversed(parse_qsl(query, keep_blank_values=True)))


class Attribute(NamedTuple):
    """One place in a request."""

    kind: Kind
    name: str = ""
    """Empty for the id, of which there is one."""

    @property
    def is_in_headers(self) -> bool:
        """Whether the headers are all that has to be looked at."""
        return self.kind in {"header", "cookie"}

    def read(self, headers: Mapping[str, str], facts: RequestFacts) -> str | None:
        """What stands there; None for nothing. Names of headers are lower case."""
        kind, name = self
        if kind == "header":
            return headers.get(name)
        if kind == "cookie":
            return _cookie_value(headers.get("cookie", ""), name)
        if kind == "query":
            return facts.query.get(name)
        if kind == "parameter":
            return _text(facts.parameters.get(name))
        return facts.id

    def document(self) -> JsonObject:
        """As a route document names it."""
        return {self.kind: self.name or True}

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Condition:
    """What a match rule asks of an attribute: one of a few values, a prefix, or whether it is there."""

    attribute: Attribute
    values: dict[str, None] | None = None
    """In the order of the document; a look-up costs the same for one value and for many."""
    prefix: str | None = None
    is_present: bool | None = None

    def holds(self, headers: Mapping[str, str], facts: RequestFacts) -> bool:
        """Whether a request meets it."""
        value = self.attribute.read(headers, facts)
        if self.is_present is not None:
            return (value is not None) is self.is_present
        if value is None:
            return False
        return self._takes(value)

    def takes_all_of(self, other: Condition) -> bool:
        """Whether every request that meets `other` meets this one too."""
        if self.attribute != other.attribute:
            return False
        if self.is_present is not None:
            return self.is_present is (other.is_present is not False)
        if other.values is not None:
            return all(self._takes(value) for value in other.values)
        return self.prefix is not None and other.prefix is not None and other.prefix.startswith(self.prefix)

    def _takes(self, value: str) -> bool:
        return value in self.values if self.values is not None else value.startswith(self.prefix or "")

    def document(self) -> JsonObject:
        """The operator, as a route document has it."""
        if self.is_present is not None:
            return {"present": self.is_present}
        if self.values is not None:
            values = list(self.values)
            return {"equals": values[0]} if len(values) == 1 else {"in": values}
        return {"prefix": self.prefix}

    def __str__(self) -> str:
        if self.is_present is not None:
            return f"{self.attribute} is {'there' if self.is_present else 'not there'}"
        if self.values is not None:
            return f"{self.attribute} = {' | '.join(self.values)}"
        return f"{self.attribute} starts with {self.prefix}"


def _cookie_value(header: str, name: str) -> str | None:
    """RFC 6265, section 4.2."""
    for pair in header.split(";"):
        key, equals, value = pair.partition("=")
        if equals and key.strip() == name:
            return value.strip()
    return None


def _text(value: Any) -> str | None:
    """A parameter's text; a number or bool counts as its JSON."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()
