"""Appends to the streams that the collector reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from gateway.state import keys
from gateway.state.client import Store, store_errors

# The marker and the entry are one step: a label is counted once, however often a client sends it.
_APPEND_LABEL = """
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[1]) then
  return 0
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
return 1
"""


SMOOTHING = 0.02


Outcome: TypeAlias = Literal["written", "refused", "failed"]
"""`refused` entries will never be taken: something else stands under the stream's key. `failed` ones may be later."""


def _outcome(reply: object) -> Outcome:
    if not isinstance(reply, Exception):
        return "written"
    return "refused" if str(reply).startswith("WRONGTYPE") else "failed"


class LogWriter:
    """Writes sampled micro-batches and labels; every stream is capped."""

    def __init__(self, store: Store, *, prediction_bytes: int, feedback_entries: int) -> None:
        self._store = store
        self._prediction_bytes = prediction_bytes
        self._entry_bytes: dict[str, float] = {}
        self._feedback_entries = feedback_entries
        self._append_label = store.register_script(_APPEND_LABEL)

    async def append_predictions(self, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[Outcome]:
        """Append (model, fields) pairs in one round trip; what became of each.

        Raises `StoreUnavailable` if the connection broke; any part of them may have been written then.
        """
        with store_errors():
            pipeline = self._store.pipeline(transaction=False)
            for model, fields in entries:
                pipeline.xadd(
                    keys.predictions(model),
                    dict[Any, Any](fields),
                    maxlen=self._length_cap(model, fields),
                    approximate=True,
                )
            replies = await pipeline.execute(raise_on_error=False)
        return [_outcome(reply) for reply in replies]

    def _length_cap(self, model: str, fields: Mapping[bytes, bytes]) -> int:
        """Streams are capped by length only; the size that entries have had says which length the bytes allow."""
        size = sum(map(len, fields.values()))
        average = self._entry_bytes.get(model, size)
        # A larger entry counts at once, smaller ones gradually: what is stored may be of the larger kind.
        self._entry_bytes[model] = max(size, average + SMOOTHING * (size - average))
        return max(1, int(self._prediction_bytes / self._entry_bytes[model]))

    async def append_label(self, model: str, prediction_id: str, fields: Mapping[str, str]) -> bool:
        """Append one label; False if this prediction has one already."""
        arguments: list[str | int] = [keys.LABEL_TTL_SECONDS, self._feedback_entries]
        for name, value in fields.items():
            arguments += [name, value]
        with store_errors():
            return bool(
                await self._append_label(keys=[keys.feedback(model), keys.label(model, prediction_id)], args=arguments)
            )
