"""Which variant answers a request: pure functions over a compiled, immutable route.

A route is a JSON document (`docs/operations.md` describes it). `document.py` compiles it or says what is wrong with it,
`route.py` decides, `attributes.py` reads what a rule asks for out of a request, `differences.py` compares two documents
and `simulation.py` says what a document would have done with the requests in the log.
"""

from gateway.routing.attributes import NO_FACTS, RequestFacts, query_parameters
from gateway.routing.document import compile_route, default_route
from gateway.routing.route import BUCKETS, Decision, Route, Variant

__all__ = [
    "BUCKETS",
    "NO_FACTS",
    "Decision",
    "RequestFacts",
    "Route",
    "Variant",
    "compile_route",
    "default_route",
    "query_parameters",
]
