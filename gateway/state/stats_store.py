"""Windows, verdicts, labels and counters of the collectors.

The rule of this file: a change and the acknowledgement of the entries it comes from are one script, and the script
does nothing unless every entry is still pending for the consumer that brings it. So whoever dies, stalls or does not
hear the answer can read its pending entries again and repeat: nothing is lost and nothing counts twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from gateway.state import keys
from gateway.state import stats_scripts as scripts
from gateway.state.client import Store, store_errors
from gateway.stats.performance import Performance, performance_from_fields
from gateway.stats.verdict import Verdict

logger = logging.getLogger(__name__)

SKETCH_FIELD = b"sketch:"
"""Prefix of a window hash's fields that hold one collector's sketches; `id`, `opened` and `rows` stand beside them."""

ENTRIES = "entries"
ROWS = "rows"
UNWATCHED_ROWS = "rows_unwatched"
LABELS = "labels"
DEAD_LETTERS = "dead_letters"
LOST_ENTRIES = "entries_lost"
WINDOWS = "windows_closed"
COUNTERS = (ENTRIES, ROWS, UNWATCHED_ROWS, LABELS, DEAD_LETTERS, LOST_ENTRIES, WINDOWS)

DEAD_LETTER_FIELDS = 16
DEAD_LETTER_FIELD_BYTES = 4096
"""Of an entry that is set aside this much is kept, enough to see what was wrong with it."""


class NotOurs(Exception):
    """Entries are no longer pending for this consumer: another one took them over. Nothing was changed."""


class OpenWindow(NamedTuple):
    """The window that is being filled. `opened` is Unix seconds."""

    id: str
    opened: float
    rows: int


class WindowParts(NamedTuple):
    """The open window with every collector's part of it."""

    window: OpenWindow
    blobs: dict[str, bytes]


class StatsStore:
    """Every state change that collectors make, and the readers of what they made of it.

    Every method raises `StoreUnavailable` if Redis does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commit_window = store.register_script(scripts.COMMIT_WINDOW)
        self._close_window = store.register_script(scripts.CLOSE_WINDOW)
        self._announce = store.register_script(scripts.ANNOUNCE)
        self._commit_feedback = store.register_script(scripts.COMMIT_FEEDBACK)
        self._skip = store.register_script(scripts.SKIP)
        self._dead_letter = store.register_script(scripts.DEAD_LETTER)

    async def commit_window(
        self,
        model: str,
        version: str,
        *,
        consumer: str,
        base: str,
        fresh: str,
        merged: bytes,
        delta: bytes,
        rows: int,
        ids: Sequence[bytes],
        now: float,
    ) -> OpenWindow:
        """Add rows to the open window and acknowledge the entries they came from.

        If the window is still `base`, this consumer's part becomes `merged`. Else its part is `delta` alone, in
        whatever window is open or in a new one called `fresh`. Raises `NotOurs` if an entry is not pending for us.
        """
        touched = [keys.predictions(model), keys.window(model, version), keys.collector(model)]
        args = [keys.GROUP, consumer, base, fresh, now, keys.WINDOW_TTL_SECONDS, rows, merged, delta, *ids]
        reply = await self._run(self._commit_window, touched, args)
        if reply is None:
            raise NotOurs(f"entries of {model}/{version} were taken over by another collector")
        return OpenWindow(reply[0].decode(), float(reply[1]), int(reply[2]))

    async def close_window(self, window: OpenWindow, verdict: Verdict) -> bool:
        """Publish the verdict and drop the window; False, and nothing done, if it has changed since it was read."""
        model, version = verdict.model, verdict.version
        touched = [
            keys.window(model, version),
            keys.verdicts(model),
            keys.verdict(model, version),
            keys.collector(model),
        ]
        args = [window.id, window.rows, verdict.to_json(), keys.VERDICT_ENTRIES, keys.VERDICT_TTL_SECONDS]
        return bool(await self._run(self._close_window, touched, args))

    async def announce(self, verdict: Verdict) -> bool:
        """Publish a verdict that is about no window, unless the latest one already has this status."""
        touched = [keys.verdicts(verdict.model), keys.verdict(verdict.model, verdict.version)]
        args = [verdict.to_json(), verdict.status, keys.VERDICT_ENTRIES, keys.VERDICT_TTL_SECONDS]
        return bool(await self._run(self._announce, touched, args))

    async def skip(self, model: str, *, consumer: str, rows: int, ids: Sequence[bytes]) -> None:
        """Acknowledge predictions that cannot be watched, and count them. Raises `NotOurs` as `commit_window` does."""
        touched = [keys.predictions(model), keys.collector(model)]
        if await self._run(self._skip, touched, [keys.GROUP, consumer, rows, *ids]) is None:
            raise NotOurs(f"entries of {model} were taken over by another collector")

    async def commit_feedback(
        self, model: str, *, consumer: str, counts: Iterable[Performance], ids: Sequence[bytes]
    ) -> None:
        """Add labelled predictions and acknowledge their entries. Raises `NotOurs` as `commit_window` does."""
        touched = [keys.feedback(model), keys.performance(model), keys.collector(model)]
        steps = [part for count in counts for step in count.to_fields() for part in step]
        args = [keys.GROUP, consumer, keys.PERFORMANCE_TTL_SECONDS, len(ids), *ids, *steps]
        if await self._run(self._commit_feedback, touched, args) is None:
            raise NotOurs(f"labels of {model} were taken over by another collector")

    async def dead_letter(
        self, model: str, stream: str, id_: bytes, fields: Mapping[bytes, bytes], reason: str
    ) -> None:
        """Set an entry aside with the reason, acknowledge it and count it; nothing if it was acknowledged before."""
        kept = [part[:DEAD_LETTER_FIELD_BYTES] for field in list(fields.items())[:DEAD_LETTER_FIELDS] for part in field]
        touched = [stream, keys.dead_letters(model), keys.collector(model)]
        args = [keys.GROUP, id_, keys.DEAD_LETTER_ENTRIES, reason[:DEAD_LETTER_FIELD_BYTES], *kept]
        await self._run(self._dead_letter, touched, args)

    async def count(self, model: str, counter: str, amount: int) -> None:
        """Add to one of `COUNTERS`."""
        await self._command("HINCRBY", keys.collector(model), counter, amount)

    async def counters(self, model: str) -> dict[str, int]:
        """Every one of `COUNTERS`, zero where nothing happened yet."""
        values = await self._command("HMGET", keys.collector(model), *COUNTERS)
        return {name: int(value or 0) for name, value in zip(COUNTERS, values, strict=True)}

    async def progress(self, model: str, version: str) -> OpenWindow | None:
        """The window that is being filled, if there is one."""
        values = await self._command("HMGET", keys.window(model, version), "id", "opened", "rows")
        return None if None in values else OpenWindow(values[0].decode(), float(values[1]), int(values[2]))

    async def parts(self, model: str, version: str) -> WindowParts | None:
        """The window with all parts; larger than `progress` by some 10 KB for each feature and collector."""
        fields: dict[bytes, bytes] = await self._command("HGETALL", keys.window(model, version))
        if not fields:
            return None
        blobs = {
            field.removeprefix(SKETCH_FIELD).decode(): blob
            for field, blob in fields.items()
            if field.startswith(SKETCH_FIELD)
        }
        window = OpenWindow(fields[b"id"].decode(), float(fields[b"opened"]), int(fields[b"rows"]))
        return WindowParts(window, blobs)

    async def part(self, model: str, version: str, consumer: str) -> tuple[str, bytes] | None:
        """The open window's id and one consumer's part of it."""
        field = SKETCH_FIELD + consumer.encode()
        values = await self._command("HMGET", keys.window(model, version), "id", field)
        return None if None in values else (values[0].decode(), values[1])

    async def latest(self, model: str, version: str) -> Verdict | None:
        """The latest verdict on one version."""
        document = await self._command("GET", keys.verdict(model, version))
        return _readable(document) if document else None

    async def history(self, model: str, *, since: float = 0.0, limit: int = 100) -> list[Verdict]:
        """The newest verdicts on all versions published at or after `since` (Unix seconds), oldest first."""
        start = f"{int(since * 1000)}-0"
        with store_errors():
            entries = await cast("Any", self._store.xrevrange(keys.verdicts(model), "+", start, count=limit))
        verdicts = (_readable(fields[b"verdict"]) for _, fields in reversed(entries or []))
        return [verdict for verdict in verdicts if verdict is not None]

    async def performance(self, model: str) -> list[Performance]:
        """Labelled predictions by version and variant."""
        return performance_from_fields(await self._command("HGETALL", keys.performance(model)))

    async def _run(self, script: Any, touched: list[str], args: list[Any]) -> Any:
        with store_errors():
            return await script(keys=touched, args=args)

    async def _command(self, *command: Any) -> Any:
        with store_errors():
            return await self._store.execute_command(*command)  # type: ignore[no-untyped-call]


def _readable(document: bytes) -> Verdict | None:
    """None for what another release wrote in another shape; it must not stop the one that runs now."""
    try:
        return Verdict.from_json(document)
    except ValueError as error:
        logger.warning("a stored verdict cannot be read: %s", error)
        return None
