"""Route documents in Redis: compare-and-set by revision, an audit entry for every change, notice to every gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import orjson
from redis.exceptions import ResponseError

from gateway.errors import Conflict
from gateway.prediction_id import MAX_REVISION
from gateway.state import keys
from gateway.state.client import Store, store_errors
from gateway.types import JsonObject

# What is replaced is named by its bytes: a document edited by hand may be no JSON, or JSON to one parser only.
_WRITE = """
local current = redis.call('GET', KEYS[1]) or ''
if current ~= ARGV[1] then
  return {0, current}
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'revision', ARGV[4], 'actor', ARGV[5], 'reason', ARGV[6],
  'before', current ~= '' and current or ARGV[9], 'document', ARGV[2], 'restores', ARGV[10])
redis.call('PUBLISH', ARGV[7], ARGV[8])
return {1, ''}
"""


WRONG_KIND = b"a key of the wrong kind: delete it"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change of a route."""

    changed_at: float
    """Unix time in seconds, by the store's clock."""
    revision: int
    actor: str
    reason: str
    before: JsonObject | None
    """What was stored; where nothing was, the default route that was in force, if whoever wrote the entry said so."""
    document: JsonObject
    restores: int | None = None
    """The revision whose document this is again, if it is that of an earlier one."""


def revision_of(raw: bytes | None) -> int:
    """The revision a change must name: that of the stored document, 0 where there is none that a route could have."""
    revision = (parse_document(raw) or {}).get("revision")
    return revision if type(revision) is int and 1 <= revision <= MAX_REVISION else 0


class RouteStore:
    """The shared truth about routes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._write = store.register_script(_WRITE)

    async def read(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """The stored documents, unparsed: somebody may have edited them by hand."""
        with store_errors():
            pipeline = self._store.pipeline(transaction=False)
            for name in names:
                pipeline.get(keys.route(name))
            replies = await pipeline.execute(raise_on_error=False)
            return {name: _raw(reply) for name, reply in zip(names, replies, strict=True)}

    async def write(
        self,
        document: JsonObject,
        *,
        replaces: bytes | None,
        actor: str,
        reason: str,
        default: JsonObject | None = None,
        restores: int | None = None,
    ) -> None:
        """Store a valid document in place of exactly what `read` gave.

        `default` is kept as what was before where nothing was stored, `restores` is for the audit entry. Raises
        `Conflict` if something else is stored by now.
        """
        name = document["name"]
        arguments = [
            replaces or b"",
            orjson.dumps(document),
            keys.AUDIT_ENTRIES,
            document["revision"],
            actor,
            reason,
            keys.CHANGES_CHANNEL,
            name,
            b"" if default is None else orjson.dumps(default),
            "" if restores is None else restores,
        ]
        with store_errors():
            written, current = await self._write(keys=[keys.route(name), keys.audit(name)], args=arguments)
        if not written:
            raise Conflict(f"route {name!r} was changed meanwhile; it is at revision {revision_of(current)}")

    async def history(self, name: str, limit: int) -> list[AuditEntry]:
        """The newest changes first; what somebody else put into the stream is passed over."""
        with store_errors():
            entries: list[tuple[bytes, dict[bytes, bytes]]] = await self._store.xrevrange(  # type: ignore[assignment]
                keys.audit(name), count=limit
            )
        changes = (_audit_entry(entry_id, fields) for entry_id, fields in entries)
        return [change for change in changes if change is not None]

    async def changes(self, poll_seconds: float) -> AsyncGenerator[None]:
        """Yields when a route may have changed: at each notice, and every `poll_seconds` at the latest."""
        with store_errors():
            async with self._store.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(keys.CHANGES_CHANNEL)
                while True:
                    yield
                    await pubsub.get_message(timeout=poll_seconds)


def parse_document(raw: bytes | None) -> JsonObject | None:
    """The JSON object in `raw`, or None if it is anything else, or nested deeper than JSON is written here."""
    try:
        document = orjson.loads(raw or b"null")
        orjson.dumps(document)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    return document if isinstance(document, dict) else None


def _raw(reply: bytes | Exception | None) -> bytes | None:
    """One key that is no string must not keep the other routes from being read."""
    if isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply):
        return WRONG_KIND
    if isinstance(reply, Exception):
        raise reply
    return reply


def _audit_entry(entry_id: bytes, fields: dict[bytes, bytes]) -> AuditEntry | None:
    try:
        return AuditEntry(
            changed_at=int(entry_id.split(b"-")[0]) / 1000,
            revision=int(fields[b"revision"]),
            actor=fields[b"actor"].decode(),
            reason=fields[b"reason"].decode(),
            before=parse_document(fields[b"before"]),
            document=parse_document(fields[b"document"]) or {},
            restores=int(restores) if (restores := fields.get(b"restores")) else None,
        )
    except (KeyError, ValueError):
        return None
