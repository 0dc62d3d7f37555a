"""Documents for tests of routes."""

from __future__ import annotations

from typing import Any

from gateway.routing import Route, compile_route


def variant(name: str, weight: Any, version: Any = "1", **more: Any) -> dict[str, Any]:
    """One variant."""
    return {"name": name, "version": version, "weight": weight, **more}


def match(operator: str = "equals", operand: Any = "1", variant: Any = "stable", **attribute: Any) -> dict[str, Any]:
    """One match rule, of the attribute that the keyword names."""
    return {operator: operand, "variant": variant, **attribute}


def document(**changes: Any) -> dict[str, Any]:
    """A route of two variants with 95 and 5 per cent."""
    return {
        "name": "m",
        "revision": 7,
        "variants": [variant("stable", 95), variant("canary", 5, "2")],
        **changes,
    }


def route_of(*weights: float, salt: str = "m", **more: Any) -> Route:
    """A route of variants `v0`, `v1`, ... that sticks by the header `user`."""
    variants = [variant(f"v{index}", weight) for index, weight in enumerate(weights)]
    return compile_route(document(variants=variants, salt=salt, **{"sticky": {"header": "user"}, **more}), name="m")
