"""Every option, once. The environment (`GATEWAY_*`), the `--config` file and the command line are generated from here.

Precedence: command line, environment, file, default. Unknown names and impossible values stop the start.
"""

from __future__ import annotations

import difflib
import os
import sys
from ipaddress import ip_address
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from gateway.errors import StartupError

ENV_PREFIX = "GATEWAY_"
SECRETS = ("ops_token", "id_key")
MINIMUM_SECRET_LENGTH = 16
OPS_URL_VARIABLE = f"{ENV_PREFIX}OPS_URL"
"""Names the gateway to the commands that talk to one; no setting of a gateway itself."""

LOG_BUFFER_MINIMUM = 2**16

ENGINE_OPTIONS = (
    *("models", "model_keys", "model_memory_bytes", "data_dir", "device", "device_id", "device_memory_bytes"),
    *("threads", "thread_budget", "request_timeout", "log_level", "log_format"),
)
"""What the engine process is told."""

Port = Annotated[int, Field(ge=0, le=65_535)]


class Settings(BaseSettings):
    """Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    _config_file: ClassVar[Path | None] = None

    models: Path = Field(Path("models"), description="Model repository: <name>/<version>/model.onnx.")
    model_keys: Path | None = Field(
        None, description="Ed25519 public keys (PEM); versions not signed by one of them are refused."
    )
    model_memory_bytes: int = Field(
        0, ge=0, description="Memory of all loaded models; a load beyond it is refused. 0 is what the container has."
    )
    model_poll_seconds: float = Field(
        0.0, ge=0, description="How often to look for new, changed and removed versions; 0 waits for load requests."
    )
    data_dir: Path = Field(
        Path(".gateway"), description="Embedded store, last good rules, signing key, TensorRT engines."
    )
    host: str = Field("127.0.0.1", description="Address of the public port: predictions, health, feedback.")
    port: Port = Field(8080, description="Public port; 0 takes a free one.")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port for gRPC on host; 0 takes a free one, unset is off. Needs the grpc extra.",
    )
    ops_host: str = Field("127.0.0.1", description="Address of the ops port; beyond loopback it needs ops_token.")
    ops_port: Port = Field(8081, description="Ops port: admin API and /metrics; 0 takes a free one.")
    ops_token: SecretStr | None = Field(None, description="Bearer token for the ops port.")
    metrics_public: bool = Field(False, description="Serve /metrics without the token, for the scraper.")
    control_public: bool = Field(
        False, description="Let every client of port and grpc_port load and unload models and change the log's level."
    )
    tls_cert: Path | None = Field(None, description="Certificate chain (PEM) of port and grpc_port; with tls_key.")
    tls_key: Path | None = Field(None, description="Private key (PEM) that goes with tls_cert.")
    redis_url: str | None = Field(None, description="Redis or Valkey to use; unset starts the embedded one.")
    id_key: SecretStr | None = Field(
        None, description="Key that signs prediction ids; unset shares a random one through the store."
    )
    workers: int = Field(
        1,
        ge=1,
        le=128,
        description="Processes that share port and grpc_port, each with all models; above 1 needs Linux.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes CUDA where ONNX Runtime offers it; cuda refuses to start without."
    )
    device_id: int = Field(0, ge=0, description="Which CUDA device.")
    device_memory_bytes: int | None = Field(
        None, ge=2**20, description="Most CUDA memory for the arena of each loaded version; unset is all there is."
    )
    threads: int = Field(
        0, ge=0, description="Threads of one ONNX Runtime call; 0 is one, or one per core for models that take long."
    )
    thread_budget: int = Field(
        0, ge=0, description="Threads that all ONNX Runtime calls together may use; 0 is the cores of this process."
    )
    engine: Literal["inline", "process"] = Field(
        "inline", description="Where models run: in the gateway, or in one engine process (Linux only)."
    )
    engine_arena_bytes: int = Field(
        256 * 2**20, ge=2**20, description="Memory shared with the engine process; one request's inputs must fit."
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="A larger request body is refused with 413.")
    request_timeout: float = Field(30.0, gt=0, description="Longest wait in a model's queue before 503.")
    sample_rate: float = Field(1.0, ge=0, le=1, description="Share of the requests whose rows are logged.")
    server_timing: bool = Field(True, description="Tell clients where the time of each prediction went.")
    otlp_endpoint: str | None = Field(
        None, description="Base URL of an OTLP/HTTP collector that takes traces; unset traces nothing."
    )
    trace_rate: float = Field(
        0.01, ge=0, le=1, description="Share of the requests traced of those whose caller leaves it open."
    )
    log_buffer_bytes: int = Field(
        16 * 2**20,
        ge=LOG_BUFFER_MINIMUM,
        description="Log entries waiting for the store; past it they are dropped and counted.",
    )
    log_stream_bytes: int = Field(
        256 * 2**20, ge=2**20, description="About how much of the store each model's prediction stream may take."
    )
    feedback_stream_entries: int = Field(1_000_000, ge=100, description="Length cap of each feedback stream.")
    route_poll_seconds: float = Field(0.5, gt=0, le=60, description="How often routes are read besides pub/sub.")
    collector: bool = Field(True, description="Run a collector beside the gateway.")
    consumer_name: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="This collector's name, unlike any other's; a stable one resumes at once after a crash.",
    )
    drain_seconds: float = Field(
        0.0, ge=0, description="After SIGTERM, how long to serve on while not ready, so that load balancers notice."
    )
    shutdown_timeout: float = Field(30.0, gt=0, description="Longest wait for requests in flight at shutdown.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log record.")
    log_format: Literal["text", "json"] = Field("text", description="Log records as text or one JSON object a line.")

    @model_validator(mode="after")
    def _can_be_honoured(self) -> Self:
        for name in SECRETS:
            secret: SecretStr | None = getattr(self, name)
            if secret is not None and len(secret.get_secret_value()) < MINIMUM_SECRET_LENGTH:
                raise ValueError(f"{name} needs at least {MINIMUM_SECRET_LENGTH} characters")
        ports = {"port": (self.host, self.port), "ops_port": (self.ops_host, self.ops_port)}
        if self.grpc_port is not None:
            ports["grpc_port"] = (self.host, self.grpc_port)
        for one, other in combinations(ports, 2):
            if ports[one] == ports[other] and ports[one][1] != 0:
                raise ValueError(f"{one} and {other} are both {ports[one][1]}; they must differ")
        if self.thread_budget and self.threads > self.thread_budget:
            raise ValueError(f"threads {self.threads} is more than thread_budget {self.thread_budget} lets run")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; give both or none")
        if self.workers > 1:
            self._can_be_shared_out()
        if self.otlp_endpoint is not None:
            _refuse_unusable_endpoint(self.otlp_endpoint)
        elif "trace_rate" in self.model_fields_set:
            raise ValueError("trace_rate has no effect without otlp_endpoint; give both or leave it out")
        self._can_have_engine()
        if self.ops_token is None and not is_loopback(self.ops_host):
            raise ValueError(
                f"ops_host {self.ops_host} is reachable from other machines and the ops port has no token: "
                f"set {ENV_PREFIX}OPS_TOKEN, or keep ops_host on 127.0.0.1"
            )
        return self

    def _can_have_engine(self) -> None:
        if self.engine == "process" and sys.platform != "linux":
            raise ValueError("engine process needs Linux, for memory without a name; use inline")
        if self.engine == "inline" and "engine_arena_bytes" in self.model_fields_set:
            raise ValueError("engine_arena_bytes has no effect without engine process; give both or leave it out")

    def _can_be_shared_out(self) -> None:
        if sys.platform != "linux":
            raise ValueError(f"workers {self.workers}: only Linux spreads the connections of a port over processes")
        if self.log_buffer_bytes // self.workers < LOG_BUFFER_MINIMUM:
            raise ValueError(f"log_buffer_bytes needs at least {LOG_BUFFER_MINIMUM} for each of {self.workers} workers")

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The certificate chain and its key."""
        return (self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None

    def as_options(self) -> dict[str, str]:
        """What is set, as text: for the environment of another process."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line (as keyword arguments), environment, file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls._config_file)


def load_settings(options: dict[str, Any], config: Path | None = None) -> Settings:
    """Settings from command-line options (None means unset), environment and file.

    Raises `StartupError` that names each wrong option, or the unknown variable and the one it resembles.
    """
    _refuse_unknown_variables()
    if config is not None and not config.is_file():
        raise StartupError(f"--config {config}: no such file")

    class Configured(Settings):
        _config_file = config

    try:
        return Configured(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise StartupError(_explain(error)) from error
    except ValueError as error:
        raise StartupError(str(error) if config is None else f"--config {config}: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_unusable_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"otlp_endpoint: {error}") from error
    if parts.username is not None or parts.password is not None:
        # Not shown: the message goes to the log.
        raise ValueError("otlp_endpoint holds credentials; give them in OTEL_EXPORTER_OTLP_HEADERS instead")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ValueError(f"otlp_endpoint {endpoint!r}: expected a URL such as http://127.0.0.1:4318")
    if parts.path.rstrip("/").endswith("/v1/traces"):
        raise ValueError(f"otlp_endpoint {endpoint!r}: leave out /v1/traces, which is added")


def _refuse_unknown_variables() -> None:
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in {*known, OPS_URL_VARIABLE}:
            close = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise StartupError(f"{variable} is not a setting{hint}")


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        # What stands under an unknown name may be a secret whose name was mistyped.
        is_secret = name in SECRETS or item["type"] == "extra_forbidden"
        given = "" if is_secret else f" (got {item['input']!r})"
        lines.append(f"{name}: {message}{given}" if name else message)
    return "; ".join(lines)
