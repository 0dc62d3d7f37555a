"""What the public port does: an entry for each path and verb. With the routes it makes the OpenAPI document."""

from __future__ import annotations

from typing import NamedTuple

from gateway.api.schemas import COUNT, STRING, V1, V2, Protocol, Schema, list_of, object_of, options_of
from gateway.errors import (
    Forbidden,
    GatewayError,
    InferenceFailed,
    InsufficientMemory,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StoreUnavailable,
    TooManyRequests,
    Unavailable,
    Unsupported,
)
from gateway.serving.model_control import READY as IS_READY
from gateway.serving.model_control import UNAVAILABLE
from gateway.serving.trace_settings import FIXED, LEVEL, OFF, ON, RATE
from gateway.telemetry.log_settings import SWITCHES, VERBOSE


class Operation(NamedTuple):
    """What a path does."""

    id: str
    tag: str
    summary: str
    answer: Schema | Protocol
    """Of status 200. A protocol's schema depends on the model, so the operation is described once for each model."""
    errors: tuple[type[GatewayError], ...] = ()
    body: Schema | None = None
    is_body_required: bool = True
    media_type: str = "application/json"


OF_A_MODEL = (NotFound, Unavailable)
OF_A_PREDICTION = (
    *(InvalidRequest, NotFound, PayloadTooLarge, TooManyRequests),
    *(InferenceFailed, Unsupported, Unavailable),
)
OF_CONTROL = (InvalidRequest, Forbidden, PayloadTooLarge)
OF_A_CHANGE = (*OF_CONTROL, NotFound, Unavailable)

BOOLEAN: Schema = {"type": "boolean"}
TENSOR = object_of(name=STRING, datatype=STRING, shape=list_of({"type": "integer"}))
SERVER = object_of(name=STRING, version=STRING, extensions=list_of(STRING))
LIVE = object_of(live=BOOLEAN)
READY = object_of(ready=BOOLEAN)
NAMES = object_of(models=list_of(STRING))
MODEL = object_of(
    name=STRING, versions=list_of(STRING), platform=STRING, inputs=list_of(TENSOR), outputs=list_of(TENSOR)
)
MODEL_READY = object_of(name=STRING, ready=BOOLEAN)
STATE = object_of(
    version=STRING,
    state={"enum": ["AVAILABLE", "END"]},
    status=object_of(error_code=STRING, error_message=STRING),
)
STATUS = object_of(name=STRING, ready=BOOLEAN, model_version_status=list_of(STATE))
SIGNATURE = object_of(
    model_spec=object_of(name=STRING, signature_name=STRING, version=STRING), metadata={"type": "object"}
)
LABEL = {
    **object_of(
        prediction_id={"type": "string", "description": "The `Prediction-Id` header of the answer."},
        label={"type": ["string", "integer", "number"], "description": "The class, or the value of a regression."},
    ),
    "additionalProperties": False,
}
ACCEPTED = object_of(accepted=BOOLEAN, duplicate=BOOLEAN)
DURATION = object_of(count=COUNT, ns=COUNT)
BATCH = object_of(batch_size=COUNT, compute_input=DURATION, compute_infer=DURATION, compute_output=DURATION)
DURATIONS = object_of(
    success=DURATION,
    fail=DURATION,
    queue=DURATION,
    compute_input=DURATION,
    compute_infer=DURATION,
    compute_output=DURATION,
    cache_hit=DURATION,
    cache_miss=DURATION,
)
STATISTICS = object_of(
    model_stats=list_of(
        object_of(
            name=STRING,
            version=STRING,
            last_inference=COUNT,
            inference_count=COUNT,
            execution_count=COUNT,
            inference_stats=DURATIONS,
            response_stats={"type": "object"},
            batch_stats=list_of(BATCH),
            memory_usage=list_of({"type": "object"}),
        )
    )
)
CONFIG_TENSOR = object_of(name=STRING, data_type=STRING, dims=list_of({"type": "integer"}))
CONFIG = object_of(
    name=STRING,
    platform=STRING,
    backend=STRING,
    max_batch_size=COUNT,
    input=list_of(CONFIG_TENSOR),
    output=list_of(CONFIG_TENSOR),
    parameters={"type": "object", "additionalProperties": object_of(string_value=STRING)},
)
READY_ONLY = options_of(ready=BOOLEAN)
INDEX = list_of(object_of(name=STRING, version=STRING, state={"enum": [IS_READY, UNAVAILABLE]}, reason=STRING))
LOADED = object_of(name=STRING, versions=list_of(STRING))
LOAD = options_of(parameters=options_of(version=STRING))
UNLOAD = options_of(parameters=options_of(version=STRING, unload_dependents=BOOLEAN))
LOG_SETTINGS = {
    **dict.fromkeys(SWITCHES, BOOLEAN),
    VERBOSE: {"enum": [0, 1]},
    "log_file": STRING,
    "log_format": STRING,
}

TRACE_SETTINGS: dict[str, Schema] = {
    LEVEL: {"enum": [[ON], [OFF]]},
    RATE: {"type": "string", "description": "One request in so many; 0 is those alone whose caller says so."},
    **{name: {"const": value} for name, value in FIXED.items()},
}
TRACE_CHANGES: dict[str, Schema] = {name: {"anyOf": [of, {"type": "null"}]} for name, of in TRACE_SETTINGS.items()}


def _v1(path: str, suffix: str, of: str) -> dict[tuple[str, str], Operation]:
    """V1 says the same of a model, of a version and of a label."""
    return {
        ("GET", path): Operation(f"v1Status{suffix}", "v1", f"State of {of}", STATUS, OF_A_MODEL),
        ("GET", path + "/metadata"): Operation(
            f"v1Metadata{suffix}",
            "v1",
            f"Inputs and outputs of {of}, as TensorFlow Serving says it",
            SIGNATURE,
            OF_A_MODEL,
        ),
        ("POST", path + ":predict"): Operation(
            f"v1Predict{suffix}", "v1", f"A prediction by {of}", V1, OF_A_PREDICTION
        ),
    }


def _of_a_model(path: str, name: str, summary: str, answer: Schema) -> dict[tuple[str, str], Operation]:
    """An extension that says the same of a model and of a version."""
    return {
        ("GET", f"{V2_MODEL}/{path}"): Operation(
            f"model{name}", "extensions", summary.format("a model"), answer, OF_A_MODEL
        ),
        ("GET", f"{V2_VERSION}/{path}"): Operation(
            f"version{name}", "extensions", summary.format("a version"), answer, OF_A_MODEL
        ),
    }


V2_MODEL = "/v2/models/{model}"
V2_VERSION = V2_MODEL + "/versions/{version}"
V1_MODEL = "/v1/models/{model}"

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/v2"): Operation("server", "server", "Name, version and protocol extensions", SERVER),
    ("GET", "/v2/health/live"): Operation("live", "server", "The process answers", LIVE),
    ("GET", "/v2/health/ready"): Operation(
        "ready", "server", "All models are loaded, the routes are known, no shutdown has begun", READY, (Unavailable,)
    ),
    ("GET", "/v2/models"): Operation("models", "v2", "Names of all models", NAMES),
    ("GET", V2_MODEL): Operation("model", "v2", "Inputs, outputs and versions of a model", MODEL, OF_A_MODEL),
    ("GET", V2_VERSION): Operation("version", "v2", "Inputs and outputs of a version", MODEL, OF_A_MODEL),
    ("GET", V2_MODEL + "/ready"): Operation("modelReady", "v2", "A model is loaded", MODEL_READY, OF_A_MODEL),
    ("GET", V2_VERSION + "/ready"): Operation("versionReady", "v2", "A version is loaded", MODEL_READY, OF_A_MODEL),
    ("POST", V2_MODEL + "/infer"): Operation(
        "infer", "v2", "A prediction by the version that the route chooses", V2, OF_A_PREDICTION
    ),
    ("POST", V2_VERSION + "/infer"): Operation("inferVersion", "v2", "A prediction by a version", V2, OF_A_PREDICTION),
    ("POST", "/v2/feedback"): Operation(
        "feedback",
        "labels",
        "What turned out to be true, for a prediction",
        ACCEPTED,
        (InvalidRequest, PayloadTooLarge, StoreUnavailable),
        LABEL,
    ),
    ("GET", "/v2/models/stats"): Operation("statistics", "extensions", "What all models did", STATISTICS),
    **_of_a_model("stats", "Statistics", "What {} did", STATISTICS),
    **_of_a_model("config", "Config", "Batch size, dims and queue limits of {}, as Triton says it", CONFIG),
    ("POST", "/v2/repository/index"): Operation(
        "index",
        "extensions",
        "Every version on disk or loaded, and its state",
        INDEX,
        (InvalidRequest, PayloadTooLarge),
        READY_ONLY,
        is_body_required=False,
    ),
    ("POST", "/v2/repository/models/{model}/load"): Operation(
        "load",
        "extensions",
        "Load what is not loaded of a model, or one version of it; for operators",
        LOADED,
        (*OF_A_CHANGE, Unsupported, InsufficientMemory),
        LOAD,
        is_body_required=False,
    ),
    ("POST", "/v2/repository/models/{model}/unload"): Operation(
        "unload",
        "extensions",
        "Unload a model, or one version of it; for operators",
        LOADED,
        OF_A_CHANGE,
        UNLOAD,
        is_body_required=False,
    ),
    ("GET", "/v2/logging"): Operation("logging", "extensions", "The log's level", object_of(**LOG_SETTINGS)),
    ("POST", "/v2/logging"): Operation(
        "setLogging",
        "extensions",
        "Change the log's level; for operators",
        object_of(**LOG_SETTINGS),
        OF_CONTROL,
        options_of(**LOG_SETTINGS),
        is_body_required=False,
    ),
    ("GET", "/v2/trace/setting"): Operation("traceSetting", "extensions", "Who is traced", object_of(**TRACE_SETTINGS)),
    ("POST", "/v2/trace/setting"): Operation(
        "setTraceSetting",
        "extensions",
        "Change who is traced; for operators",
        object_of(**TRACE_SETTINGS),
        OF_CONTROL,
        options_of(**TRACE_CHANGES),
        is_body_required=False,
    ),
    ("GET", V2_MODEL + "/trace/setting"): Operation(
        "modelTraceSetting",
        "extensions",
        "Who is traced, the same for all models",
        object_of(**TRACE_SETTINGS),
        OF_A_MODEL,
    ),
    ("POST", V2_MODEL + "/trace/setting"): Operation(
        "setModelTraceSetting",
        "extensions",
        "Refused: trace settings are the same for all models",
        object_of(**TRACE_SETTINGS),
        OF_A_CHANGE,
        options_of(**TRACE_CHANGES),
        is_body_required=False,
    ),
    ("GET", "/v1/models"): Operation("v1Models", "v1", "Names of all models", NAMES),
    **_v1(V1_MODEL, "", "the model"),
    **_v1(V1_MODEL + "/versions/{version}", "Version", "a version"),
    **_v1(V1_MODEL + "/labels/{label}", "Label", "a variant of the route"),
    ("GET", "/openapi.json"): Operation("openapi", "documentation", "This document", {"type": "object"}),
    ("GET", "/try"): Operation(
        "try", "documentation", "A page to try the models with", STRING, media_type="text/html; charset=utf-8"
    ),
}
