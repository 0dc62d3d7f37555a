"""The two clients: they send what a `Call` says, wait as the `RetryBudget` says, and hand over what came."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx

from gateway.client.calls import (
    Call,
    ModelMetadata,
    checked_headers,
    checked_timeout,
    feedback_call,
    infer_call,
    metadata_call,
    models_call,
    ready_call,
)
from gateway.client.codec import Result
from gateway.client.errors import InferenceError, error_of, transport_error
from gateway.client.retry import MAX_WAIT_SECONDS, RETRIES, RetryBudget
from gateway.errors import shown
from gateway.types import Array

_write_context: Callable[[dict[str, str]], None] | None = None
try:
    from opentelemetry.propagate import inject
except ImportError:
    pass
else:
    _write_context = inject

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

TIMEOUT_SECONDS = 30.0
MAX_CONNECTIONS = 100


class _Base(ABC, Generic[Http]):
    """What the two clients share: everything but the waiting."""

    def __init__(
        self,
        url: str,
        *,
        binary: bool = True,
        retries: int = RETRIES,
        max_wait: float = MAX_WAIT_SECONDS,
        timeout: float = TIMEOUT_SECONDS,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """A client of the public port at `url`, whose path, if it has one, comes before `/v2`.

        binary: send and ask for tensors as bytes; False is JSON, which cannot hold NaN and infinity.
        retries: tries after the first; `max_wait`: seconds of waiting between the tries of one call.
        timeout: seconds without progress (connecting, sending, or waiting for more of the answer) that end a try.
        headers: sent with every call. verify: False trusts any certificate; an `ssl.SSLContext` says which.
        max_connections: calls at the same time; further ones wait, at most `timeout`.

        Proxies of the environment are not used. Raises `ValueError` for an option that cannot be.
        """
        if retries < 0 or not max_wait >= 0 or max_connections < 1:
            raise ValueError("expected retries and max_wait from 0 on and max_connections from 1 on")
        self._binary = binary
        self._retries = retries
        self._max_wait = max_wait
        self._http: Http = self._open(
            base_url=_checked_url(url),
            timeout=checked_timeout(timeout),
            # An answer is compressed for a caller who asks for it in `headers`; on a fast network it is wasted time.
            headers={"accept-encoding": "identity", **checked_headers(headers)},
            verify=verify,
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            trust_env=False,
        )

    @abstractmethod
    def _open(self, **options: Any) -> Http: ...

    def _request(self, call: Call[Any]) -> httpx.Request:
        timeout = self._http.timeout if call.timeout is None else call.timeout
        return self._http.build_request(
            call.method, call.path, content=call.content, headers=call.headers, timeout=timeout
        )

    def _budget(self, call: Call[Any]) -> RetryBudget:
        return RetryBudget(self._retries, self._max_wait, is_idempotent=call.is_idempotent)


class Client(_Base[httpx.Client]):
    """A client that blocks. Threads may share it. Close it, or use it in a `with` statement."""

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str | None = None,
        outputs: Sequence[str] | None = None,
        id: str | None = None,  # noqa: A002 -- the protocol's name
        headers: Mapping[str, str] | None = None,
        traceparent: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """A prediction for `inputs`, arrays by name with the dtypes and shapes that the model takes.

        version: None leaves the choice to the route. outputs: names, in order; None is all of them.
        headers: what the route looks at, such as a sticky header.
        traceparent: W3C Trace Context; None is the current span's, where OpenTelemetry is installed.

        Raises `ValueError` for what cannot be sent and `InferenceError` for everything that happens after that.
        """
        return self._call(
            infer_call(
                model,
                inputs,
                version=version,
                outputs=outputs,
                id=id,
                headers=headers,
                traceparent=traceparent,
                timeout=timeout,
                binary=self._binary,
                context=_current_context(),
            )
        )

    def feedback(self, prediction_id: str, label: float | str) -> bool:
        """Send what turned out to be true; False if the prediction has its label already."""
        return self._call(feedback_call(prediction_id, label))

    def ready(self) -> bool:
        """Whether every model is loaded, the rules are known and no shutdown has begun."""
        return self._call(ready_call())

    def models(self) -> list[str]:
        """Names of the models."""
        return self._call(models_call())

    def metadata(self, model: str, version: str | None = None) -> ModelMetadata:
        """Inputs and outputs; without a version, of the one that takes most traffic."""
        return self._call(metadata_call(model, version))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self, **options: Any) -> httpx.Client:
        return httpx.Client(**options)

    def _call(self, call: Call[T]) -> T:
        budget = self._budget(call)
        while True:
            try:
                return _answer(call, self._send(call))
            except InferenceError as error:
                wait = budget.wait_after(error, _jitter())
                if wait is None:
                    raise
            time.sleep(wait)

    def _send(self, call: Call[Any]) -> httpx.Response:
        try:
            return self._http.send(self._request(call))
        except httpx.HTTPError as error:
            raise transport_error(error) from error


class AsyncClient(_Base[httpx.AsyncClient]):
    """As `Client`, for asyncio. Close it with `aclose`, or use it in an `async with` statement."""

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str | None = None,
        outputs: Sequence[str] | None = None,
        id: str | None = None,  # noqa: A002 -- the protocol's name
        headers: Mapping[str, str] | None = None,
        traceparent: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- of each step of a try, which `asyncio.timeout` cannot say
    ) -> Result:
        """As `Client.infer`."""
        return await self._call(
            infer_call(
                model,
                inputs,
                version=version,
                outputs=outputs,
                id=id,
                headers=headers,
                traceparent=traceparent,
                timeout=timeout,
                binary=self._binary,
                context=_current_context(),
            )
        )

    async def feedback(self, prediction_id: str, label: float | str) -> bool:
        """As `Client.feedback`."""
        return await self._call(feedback_call(prediction_id, label))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._call(ready_call())

    async def models(self) -> list[str]:
        """As `Client.models`."""
        return await self._call(models_call())

    async def metadata(self, model: str, version: str | None = None) -> ModelMetadata:
        """As `Client.metadata`."""
        return await self._call(metadata_call(model, version))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**options)

    async def _call(self, call: Call[T]) -> T:
        budget = self._budget(call)
        while True:
            try:
                return _answer(call, await self._send(call))
            except InferenceError as error:
                wait = budget.wait_after(error, _jitter())
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def _send(self, call: Call[Any]) -> httpx.Response:
        try:
            return await self._http.send(self._request(call))
        except httpx.HTTPError as error:
            raise transport_error(error) from error


def _answer(call: Call[T], response: httpx.Response) -> T:
    if response.status_code not in call.statuses:
        raise error_of(response, time.time())
    return call.read(response)


def _current_context() -> dict[str, str]:
    """Headers of the current span; none without OpenTelemetry or outside of a span."""
    carrier: dict[str, str] = {}
    if _write_context is not None:
        _write_context(carrier)
    return carrier


def _jitter() -> float:
    return random.random()  # noqa: S311 -- spreads the retries of many clients; no secret


def _checked_url(url: str) -> httpx.URL:
    parsed = httpx.URL(url)
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"url: expected the public port of a gateway, such as http://127.0.0.1:8080, got {shown(url)}")
    return parsed
