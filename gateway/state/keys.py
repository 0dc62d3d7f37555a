"""Every Redis key with its lifetime, in one place.

`{model}` is a hash tag: all keys of one model live in one cluster slot, so a script may touch several of them.
Keys without a TTL are named in `PERMANENT` with the reason; a test holds this file and the store together.
"""

from __future__ import annotations

CHANGES_CHANNEL = "gateway:changes"
"""Pub/sub channel; a message is the name of the route that changed."""

ID_KEY = "gateway:id-key"
"""Shared secret that signs prediction ids, unless `GATEWAY_ID_KEY` is set."""

GROUP = "collectors"
"""Consumer group on the prediction and feedback streams."""

DAY = 86_400

VERDICT_TTL_SECONDS = 30 * DAY
"""A model version that is no longer served loses its verdict after this long."""
WINDOW_TTL_SECONDS = 7 * DAY
"""An open window that nobody adds to."""
LABEL_TTL_SECONDS = DAY
"""How long a second label for the same prediction is recognised as a duplicate."""
PERFORMANCE_TTL_SECONDS = 90 * DAY
"""Counts of labelled predictions since the last label."""

AUDIT_ENTRIES = 10_000
VERDICT_ENTRIES = 1_000
DEAD_LETTER_ENTRIES = 1_000
"""Approximate caps (`MAXLEN ~`) of the streams that have no setting of their own."""


def route(model: str) -> str:
    """JSON route document."""
    return f"gateway:{{{model}}}:route"


def audit(model: str) -> str:
    """Stream: who changed the route, when and why."""
    return f"gateway:{{{model}}}:audit"


def predictions(model: str) -> str:
    """Stream: sampled micro-batches (`protocol/log_codec.py`)."""
    return f"gateway:{{{model}}}:predictions"


def feedback(model: str) -> str:
    """Stream: labels for prediction ids."""
    return f"gateway:{{{model}}}:feedback"


def dead_letters(model: str) -> str:
    """Stream: entries that did not parse, with the reason."""
    return f"gateway:{{{model}}}:dead-letters"


def label(model: str, prediction_id: str) -> str:
    """Marker: this prediction has its label."""
    return f"gateway:{{{model}}}:label:{prediction_id}"


def window(model: str, version: str) -> str:
    """Hash: the open window's sketches, one field a collector."""
    return f"gateway:{{{model}}}:window:{version}"


def verdict(model: str, version: str) -> str:
    """JSON: the latest verdict on one version."""
    return f"gateway:{{{model}}}:verdict:{version}"


def verdicts(model: str) -> str:
    """Stream: every verdict, capped."""
    return f"gateway:{{{model}}}:verdicts"


def performance(model: str) -> str:
    """Hash: labelled and correct predictions by version and variant."""
    return f"gateway:{{{model}}}:performance"


def collector(model: str) -> str:
    """Hash: entries read, rows folded, entries set aside."""
    return f"gateway:{{{model}}}:collector"


PERMANENT = {
    "route": "a rule must not expire",
    "audit": "capped by length: who changed what is kept as long as there is room",
    "predictions": "capped by length",
    "feedback": "capped by length",
    "dead-letters": "capped by length",
    "verdicts": "capped by length",
    "collector": "a dozen counters",
    "id-key": "prediction ids must stay verifiable",
}
