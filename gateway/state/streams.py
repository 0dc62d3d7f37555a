"""The reading side of the streams: one consumer of the collectors' group.

The rule of this file: an entry that was delivered stays pending until somebody acknowledges it together with its effect
(`stats_store.py`). After a start or an outage the consumer first reads its own pending entries again, so whatever was
lost with its memory comes back, and whatever was committed does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, NamedTuple, cast

from redis.exceptions import ResponseError

from gateway.state import keys
from gateway.state.client import Store, store_errors

FROM_THE_START = "0-0"
NEW = ">"

CONSUMER_IDLE_SECONDS = 24 * 3600.0
"""A consumer that has not asked for this long and holds nothing is forgotten: each restart may bring a new name."""

# Checked and deleted in one script, since deleting a consumer drops what is pending for it.
PRUNE = """
local removed = 0
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
"""


class Entry(NamedTuple):
    """One entry of a stream, as it was written."""

    stream: str
    id: bytes
    fields: dict[bytes, bytes]


class Delivery(NamedTuple):
    """What one read brought. Every entry in it is now pending for this consumer."""

    entries: list[Entry]
    lost: dict[str, int]
    """Entries by stream that were trimmed away while they were pending."""


class StreamReader:
    """Reads several streams for one consumer; its own pending entries first, then new ones."""

    def __init__(self, store: Store, consumer: str, *, forget_after_seconds: float = CONSUMER_IDLE_SECONDS) -> None:
        self._store = store
        self._consumer = consumer
        self._forget_after_seconds = forget_after_seconds
        self._cursors: dict[str, str] = {}
        self._prune = store.register_script(PRUNE)

    async def follow(self, streams: Iterable[str]) -> None:
        """Read these streams from now on; missing streams and groups are created. Raises `StoreUnavailable`."""
        streams = list(streams)
        for stream in streams:
            if stream not in self._cursors:
                await self._create_group(stream)
        self._cursors = {stream: self._cursors.get(stream, FROM_THE_START) for stream in streams}

    def rewind(self) -> None:
        """Forget the groups and positions: the next `follow` and `read` start with what is pending."""
        self._cursors.clear()

    @property
    def has_caught_up(self) -> bool:
        """True once everything that was pending for this consumer has been delivered again."""
        return all(cursor == NEW for cursor in self._cursors.values())

    async def read(self, count: int, block_seconds: float) -> Delivery:
        """At most `count` entries of each stream; waits for the first new one. Raises `StoreUnavailable`."""
        if not self._cursors:
            return Delivery([], {})
        with store_errors():
            try:
                replies = await cast(
                    "Awaitable[Any]",
                    self._store.xreadgroup(
                        keys.GROUP,
                        self._consumer,
                        cast("dict[Any, Any]", self._cursors),
                        count=count,
                        block=max(1, int(block_seconds * 1000)),
                    ),
                )
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self._recreate_groups()
                return Delivery([], {})
        return await self._deliver({stream.decode(): entries for stream, entries in replies})

    async def claim(self, idle_seconds: float, count: int) -> Delivery:
        """Take over what consumers that died left pending. Raises `StoreUnavailable`.

        Only for a consumer that has caught up and committed: it could be handed its own entries a second time.
        """
        entries: list[Entry] = []
        lost: dict[str, int] = {}
        for stream in self._cursors:
            with store_errors():
                _, claimed, deleted = await cast(
                    "Awaitable[Any]",
                    self._store.xautoclaim(
                        stream, keys.GROUP, self._consumer, int(idle_seconds * 1000), FROM_THE_START, count=count
                    ),
                )
                await self._prune(keys=[stream], args=[keys.GROUP, int(self._forget_after_seconds * 1000)])
            entries += (Entry(stream, id_, fields) for id_, fields in claimed)
            if deleted:
                lost[stream] = len(deleted)
        return Delivery(entries, lost)

    async def _deliver(self, replies: dict[str, list[tuple[bytes, dict[bytes, bytes]]]]) -> Delivery:
        entries: list[Entry] = []
        lost: dict[str, int] = {}
        for stream, delivered in replies.items():
            if self._cursors[stream] != NEW:
                self._cursors[stream] = delivered[-1][0].decode() if delivered else NEW
            entries += (Entry(stream, id_, fields) for id_, fields in delivered if fields)
            # An entry has at least one field, so one without any is a pending id whose entry was trimmed away.
            ghosts = [id_ for id_, fields in delivered if not fields]
            if ghosts:
                with store_errors():
                    lost[stream] = await self._store.xack(stream, keys.GROUP, *ghosts)
        return Delivery(entries, lost)

    async def _recreate_groups(self) -> None:
        """The store came back without them: an empty store, or a deleted stream."""
        streams = list(self._cursors)
        self.rewind()
        await self.follow(streams)

    async def _create_group(self, stream: str) -> None:
        with store_errors():
            try:
                await cast(
                    "Awaitable[Any]",
                    self._store.xgroup_create(stream, keys.GROUP, id=FROM_THE_START, mkstream=True),
                )
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
