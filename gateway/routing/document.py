"""From a JSON document to a route: the one validator, for the command line, the admin API and what stands in Redis.

`compile_route` refuses every document that could not be honoured, naming the path in it; nothing is repaired, and a
rule that could never take effect is refused too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from gateway.errors import InvalidRoute, shown
from gateway.prediction_id import MAX_REVISION
from gateway.routing.attributes import NOTHING, Attribute, Condition, Kind
from gateway.routing.route import TOTAL_WEIGHT, Match, Route, Sticky, Variant, plain
from gateway.types import JsonObject

SECTIONS = {"name", "revision", "variants", "sticky", "salt", "holdout", "tenant", "match", "labels", "aliases"}
"""Keys of a document."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
"""Of headers and cookies."""
PARAMETER_NAME = re.compile(r"[^\s=&;#]{1,64}\Z")
"""Of query parameters and of a JSON request's."""
OWN_PARAMETERS = re.compile(r"triton_|(sequence_(id|start|end)|priority|timeout|binary_data_output)\Z")
"""Those that mean something to the gateway, and nobody."""
MAX_VARIANTS = 16
MAX_MATCHES = 64
MAX_VALUES = 100
MAX_LABELS = 16
MAX_ALIASES = 16
MAX_CHARACTERS = 256
"""Of a salt, and of a value to compare with."""
WEIGHT_TOLERANCE = 1e-6
MATCHED: tuple[Kind, ...] = ("header", "query")
STICKY: tuple[Kind, ...] = ("header", "cookie", "parameter", "id")
OPERATORS = ("equals", "in", "prefix", "present")


def default_route(model: str, version: str) -> Route:
    """What a model without a document gets: one version takes everything. Revision 0 says that no rule exists."""
    return Route(model, 0, (Variant("default", version, TOTAL_WEIGHT),), None, model, ())


def compile_route(
    document: Any, *, name: str, versions: Collection[str] | None = None, taken: Mapping[str, str] = NOTHING
) -> Route:
    """Compile a document for the route `name`.

    `versions` are the loaded versions of the model; None skips that check. `taken` are names that no alias may have,
    each with what has it. Raises `InvalidRoute` whose message starts with the path in the document.
    """
    root = _object(document, "document")
    _known_keys(root, "document", SECTIONS)
    if root.get("name") != name:
        raise InvalidRoute(f"name: expected {name!r}, the route's own name, got {shown(root.get('name'))}")
    revision = root.get("revision")
    if isinstance(revision, bool) or not isinstance(revision, int) or not 1 <= revision <= MAX_REVISION:
        raise InvalidRoute(f"revision: expected a whole number from 1 to {MAX_REVISION}, got {shown(revision)}")
    variants = _variants(root.get("variants"), versions)
    by_name = {variant.name: variant for variant in variants}
    tenant = _tenant(root)
    sticky = _sticky(root.get("sticky"), by_name)
    return Route(
        name,
        revision,
        variants,
        sticky,
        _characters(root.get("salt", name), "salt"),
        _matches(root.get("match", []), by_name, tenant),
        _holdout(root, sticky),
        tenant,
        _labels(root.get("labels", {}), by_name),
        _aliases(root.get("aliases", []), name, taken),
    )


def _variants(value: Any, versions: Collection[str] | None) -> tuple[Variant, ...]:
    items = _list(value, "variants", MAX_VARIANTS)
    if not items:
        raise InvalidRoute("variants: expected at least one variant, got none")
    variants = tuple(_variant(item, f"variants[{index}]", versions) for index, item in enumerate(items))
    names = [variant.name for variant in variants]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRoute(f"variants[{index}].name: {name!r} occurs twice; names must differ")
    total = math.fsum(variant.weight for variant in variants)
    if abs(total - TOTAL_WEIGHT) > WEIGHT_TOLERANCE:
        shares = ", ".join(f"{variant.name}={plain(variant.weight)}" for variant in variants)
        raise InvalidRoute(f"variants: weights are per cent and must add up to 100, got {total:g} ({shares})")
    return variants


def _variant(item: Any, path: str, versions: Collection[str] | None) -> Variant:
    entry = _object(item, path)
    _known_keys(entry, path, {"name", "version", "weight"})
    name, version, weight = entry.get("name"), entry.get("version"), entry.get("weight")
    if not isinstance(name, str) or not NAME.match(name):
        raise InvalidRoute(f"{path}.name: expected letters, digits, '.', '_' or '-' (at most 63), got {shown(name)}")
    if not isinstance(version, str):
        raise InvalidRoute(f'{path}.version: expected a string such as "1", got {shown(version)}')
    if versions is not None and version not in versions:
        known = ", ".join(sorted(versions)) or "none"
        raise InvalidRoute(f"{path}.version: version {shown(version)} is not loaded; loaded versions: {known}")
    # A bool is an int to Python, not to whoever reads the document.
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= TOTAL_WEIGHT:
        raise InvalidRoute(f"{path}.weight: expected a number from 0 to 100, got {shown(weight)}")
    return Variant(name, version, float(weight))


def _sticky(value: Any, variants: Mapping[str, Variant]) -> Sticky | None:
    if value is None:
        return None
    sticky = _object(value, "sticky")
    _known_keys(sticky, "sticky", {*STICKY, "fallback"})
    attribute = _attribute(sticky, "sticky", STICKY, None)
    if attribute.kind == "parameter" and OWN_PARAMETERS.match(attribute.name):
        raise InvalidRoute(f"sticky.parameter: {attribute.name!r} means something else; take a name of your own")
    fallback = sticky.get("fallback")
    return Sticky(attribute, None if fallback is None else _variant_named(fallback, "sticky.fallback", variants))


def _holdout(root: JsonObject, sticky: Sticky | None) -> float:
    holdout = root.get("holdout", 0)
    if holdout == 0 and not isinstance(holdout, bool):
        return 0.0
    if isinstance(holdout, bool) or not isinstance(holdout, int | float) or not 0 < holdout < TOTAL_WEIGHT:
        raise InvalidRoute(f"holdout: expected a number of per cent, at least 0 and below 100, got {shown(holdout)}")
    if sticky is None:
        raise InvalidRoute("holdout: needs `sticky`, which says who is to be held out")
    return float(holdout)


def _tenant(root: JsonObject) -> Attribute | None:
    if "tenant" not in root:
        return None
    tenant = _object(root["tenant"], "tenant")
    _known_keys(tenant, "tenant", {"header"})
    # What is wrong with the rules themselves is said elsewhere.
    rules = root.get("match")
    if not isinstance(rules, list) or not any(isinstance(rule, dict) and "tenant" in rule for rule in rules):
        raise InvalidRoute('tenant: no match asks for it; leave it out, or add {"tenant": true, "equals": ...}')
    return Attribute("header", _attribute_name("header", tenant.get("header"), "tenant.header"))


def _matches(value: Any, variants: Mapping[str, Variant], tenant: Attribute | None) -> tuple[Match, ...]:
    matches: list[Match] = []
    for index, item in enumerate(_list(value, "match", MAX_MATCHES)):
        path = f"match[{index}]"
        entry = _object(item, path)
        _known_keys(entry, path, {*MATCHED, "tenant", *OPERATORS, "variant"})
        condition = _condition(entry, path, tenant)
        for earlier, match in enumerate(matches):
            if match.condition.takes_all_of(condition):
                raise InvalidRoute(f"{path}: is never reached: match[{earlier}] takes all requests that it would")
        matches.append(Match(condition, _variant_named(entry.get("variant"), f"{path}.variant", variants)))
    return tuple(matches)


def _condition(entry: JsonObject, path: str, tenant: Attribute | None) -> Condition:
    attribute = _attribute(entry, path, MATCHED, tenant)
    operator = _only_key(entry, path, OPERATORS)
    operand = entry[operator]
    where = f"{path}.{operator}"
    if operator == "present":
        if not isinstance(operand, bool):
            raise InvalidRoute(f"{where}: expected true or false, got {shown(operand)}")
        return Condition(attribute, is_present=operand)
    if operator == "prefix":
        return Condition(attribute, prefix=_characters(operand, where))
    values = _list(operand, where, MAX_VALUES) if operator == "in" else [operand]
    if not values:
        raise InvalidRoute(f"{where}: expected at least one string, got none")
    paths = [f"{where}[{index}]" for index in range(len(values))] if operator == "in" else [where]
    known: dict[str, None] = {}
    for text, place in zip(values, paths, strict=True):
        if _characters(text, place, may_be_empty=True) in known:
            raise InvalidRoute(f"{place}: {shown(text)} occurs twice")
        known[text] = None
    return Condition(attribute, values=known)


def _attribute(entry: JsonObject, path: str, kinds: tuple[Kind, ...], tenant: Attribute | None) -> Attribute:
    """What of a request `entry` names, of these kinds or, in a match, the tenant."""
    kind = _only_key(entry, path, kinds if kinds is not MATCHED else (*kinds, "tenant"))
    value = entry[kind]
    if kind in {"id", "tenant"} and value is not True:
        raise InvalidRoute(f"{path}.{kind}: expected true, got {shown(value)}")
    if kind == "tenant":
        if tenant is None:
            raise InvalidRoute(f'{path}.tenant: the route does not say who that is: "tenant": {{"header": "x-tenant"}}')
        return tenant
    found = next(known for known in get_args(Kind) if known == kind)
    return Attribute(found) if kind == "id" else Attribute(found, _attribute_name(found, value, f"{path}.{kind}"))


def _attribute_name(kind: Kind, value: Any, path: str) -> str:
    if kind in {"header", "cookie"}:
        if not isinstance(value, str) or not HEADER_NAME.match(value):
            raise InvalidRoute(f'{path}: expected a {kind} name such as "x-user-id", got {shown(value)}')
        return value.lower() if kind == "header" else value
    if not isinstance(value, str) or not PARAMETER_NAME.match(value):
        raise InvalidRoute(f'{path}: expected the name of a parameter such as "user", got {shown(value)}')
    return value


def _labels(value: Any, variants: Mapping[str, Variant]) -> dict[str, Variant]:
    labels = _object(value, "labels")
    if len(labels) > MAX_LABELS:
        raise InvalidRoute(f"labels: at most {MAX_LABELS} entries, got {len(labels)}")
    for label in labels:
        if not NAME.match(label):
            raise InvalidRoute(f"labels: expected letters, digits, '.', '_' or '-' (at most 63), got {shown(label)}")
        if label in variants:
            raise InvalidRoute(f"labels.{label}: is the name of a variant, which is its label already")
    return {label: _variant_named(variant, f"labels.{label}", variants) for label, variant in labels.items()}


def _aliases(value: Any, name: str, taken: Mapping[str, str]) -> tuple[str, ...]:
    aliases: list[str] = []
    for index, alias in enumerate(_list(value, "aliases", MAX_ALIASES)):
        path = f"aliases[{index}]"
        if not isinstance(alias, str) or not NAME.match(alias):
            raise InvalidRoute(f"{path}: expected letters, digits, '.', '_' or '-' (at most 63), got {shown(alias)}")
        if alias == name or alias in aliases:
            raise InvalidRoute(f"{path}: {alias!r} {'is the route itself' if alias == name else 'occurs twice'}")
        if alias in taken:
            raise InvalidRoute(f"{path}: {alias!r} is {taken[alias]}; an alias must be a name that nothing else has")
        aliases.append(alias)
    return tuple(aliases)


def _variant_named(value: Any, path: str, variants: Mapping[str, Variant]) -> Variant:
    if not isinstance(value, str) or value not in variants:
        raise InvalidRoute(f"{path}: no variant {shown(value)}; variants: {', '.join(variants)}")
    return variants[value]


def _characters(value: Any, path: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InvalidRoute(f"{path}: expected a {'' if may_be_empty else 'non-empty '}string, got {shown(value)}")
    if len(value) > MAX_CHARACTERS:
        raise InvalidRoute(f"{path}: at most {MAX_CHARACTERS} characters, got {len(value)}")
    return value


def _only_key(entry: JsonObject, path: str, keys: Collection[str]) -> str:
    """The one of these keys that is there."""
    found = [key for key in keys if key in entry]
    if len(found) != 1:
        got = " and ".join(found) or "none"
        raise InvalidRoute(f"{path}: expected one of {', '.join(keys)}, got {got}")
    return found[0]


def _object(value: Any, path: str) -> JsonObject:
    if not isinstance(value, dict):
        raise InvalidRoute(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _list(value: Any, path: str, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRoute(f"{path}: expected a list, got {type(value).__name__}")
    if len(value) > limit:
        raise InvalidRoute(f"{path}: at most {limit} entries, got {len(value)}")
    return value


def _known_keys(entry: JsonObject, path: str, known: set[str]) -> None:
    for key in entry:
        if key not in known:
            raise InvalidRoute(f"{path}: unknown key {shown(key)}; known keys: {', '.join(sorted(known))}")
