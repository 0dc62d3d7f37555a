"""What schemathesis is to hold answers to, beside its own checks; it imports this as its hooks."""

from __future__ import annotations

from typing import Any

import schemathesis

NOT_A_NUMBER = "which JSON cannot hold"
"""Part of the error for a model that computes NaN or infinity, here from numbers that nobody would send."""


@schemathesis.check
def nothing_breaks(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """No 5xx, but for the one that values can bring about."""
    assert response.status_code < 500 or NOT_A_NUMBER in response.json()["error"], f"{case.path}: {response.text}"


@schemathesis.check
def what_fits_the_schema_is_taken(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """V1 bodies are fully described by their schema, but for the text in base64.

    JSON Schema cannot say that the values of a v2 tensor fill its shape, nor that a prediction id was issued here.
    """
    assert case.meta is not None
    is_described = case.path.endswith(":predict") and "b64" not in str(case.body)
    if is_described and case.meta.generation.mode.is_positive:
        assert response.status_code == 200 or NOT_A_NUMBER in response.json()["error"], response.text
