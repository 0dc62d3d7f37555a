"""`inference.GRPCInferenceService` over one data plane.

Messages and the names of the RPCs come from the service's published descriptor; what is not implemented here answers
UNIMPLEMENTED with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2 as pb

from gateway import __version__
from gateway.api.control import check_open
from gateway.api.grpc.codec import FINAL_PARAMETER, decode_request, encode_response, parameters_of
from gateway.api.grpc.status import refuse, status_of
from gateway.api.grpc.stream import AnswerStream
from gateway.errors import GatewayError, InvalidRequest, NotFound, Unavailable, Unsupported
from gateway.protocol.model_control import version_to_load, version_to_unload
from gateway.protocol.parameters import NO_SHARED_MEMORY, Schedule
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.serving.inventory import EXTENSIONS, REPOSITORY_EXTENSIONS, SERVER_NAME, Inventory
from gateway.serving.model_control import ModelControl
from gateway.serving.upward import Upward
from gateway.telemetry.metrics import ERRORS, GatewayMetrics
from gateway.types import InferenceResponse

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
PREDICTION_ID = "prediction-id"
SERVER_TIMING = "server-timing"

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Unary: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
"""One message in, one out; raises `GatewayError`."""


class InferenceService:
    """The RPCs."""

    def __init__(
        self,
        plane: DataPlane,
        inventory: Inventory,
        control: ModelControl,
        metrics: GatewayMetrics,
        *,
        control_public: bool,
        upward: Upward | None = None,
    ) -> None:
        """`control_public` lets clients load and unload models; a worker goes `upward` for what is about all."""
        self._plane = plane
        self._inventory = inventory
        self._control = upward or control
        self._upward = upward
        self._metrics = metrics
        self._control_public = control_public
        self._extensions = EXTENSIONS + REPOSITORY_EXTENSIONS if control_public else EXTENSIONS
        self._closing = asyncio.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a `grpc.aio` server."""
        unary: dict[str, Unary] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_load,
            "RepositoryModelUnload": self.repository_unload,
        }
        methods = {
            method.name: grpc.unary_unary_rpc_method_handler(
                _answering(unary.get(method.name) or _unsupported(method.name)), **_codec(method)
            )
            for method in SERVICE.methods
        }
        stream = SERVICE.methods_by_name["ModelStreamInfer"]
        methods[stream.name] = grpc.stream_stream_rpc_method_handler(self.model_stream_infer, **_codec(stream))
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    def close(self) -> None:
        """Streams answer what they have read and end; otherwise one that is left open would hold up the end."""
        self._closing.set()

    # -- Predictions ---------------------------------------------------------------------------------------------------

    async def model_infer(self, message: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One prediction. Its id is in the trailing metadata and among the parameters."""
        call, answer = await self._predict(message, _headers(context), context)
        told = ((PREDICTION_ID, call.prediction_id.decode()), (SERVER_TIMING, call.timing.decode()))
        context.set_trailing_metadata(tuple(field for field in told if field[1]))
        return answer

    async def model_stream_infer(self, _messages: Any, context: Context) -> None:
        """Predictions over one stream, each answered when it is done, whatever came before it."""
        headers = _headers(context)
        await AnswerStream(context, lambda message: self._stream_answer(message, headers, context), self._closing).run()

    async def _stream_answer(
        self, message: pb.ModelInferRequest | GatewayError, headers: Mapping[str, str], context: Context
    ) -> pb.ModelStreamInferResponse:
        request_id = "" if isinstance(message, GatewayError) else message.id
        try:
            if isinstance(message, GatewayError):
                raise message
            _, answer = await self._predict(message, headers, context)
        except GatewayError as error:
            failed = pb.ModelInferResponse(id=request_id)
            stream_answer = pb.ModelStreamInferResponse(error_message=status_of(error).details, infer_response=failed)
        else:
            stream_answer = pb.ModelStreamInferResponse(infer_response=answer)
        stream_answer.infer_response.parameters[FINAL_PARAMETER].bool_param = True
        return stream_answer

    async def _predict(
        self, message: pb.ModelInferRequest, headers: Mapping[str, str], context: Context
    ) -> tuple[Call, pb.ModelInferResponse]:
        """Raises `GatewayError`, counted."""
        try:
            call, response = await self._outcome(message, headers, _schedule(context))
            answer = encode_response(response)
            response.note_encoded()
            return call, answer
        except GatewayError as error:
            self._count(message.model_name, error)
            raise
        except Exception as error:
            logger.exception("a prediction over gRPC failed")
            hidden = internal_error()
            self._count(message.model_name, hidden)
            raise hidden from error

    async def _outcome(
        self, message: pb.ModelInferRequest, headers: Mapping[str, str], schedule: Schedule | None
    ) -> tuple[Call, InferenceResponse]:
        """Submit and wait. Whoever cancels, or whose deadline passes, is not run."""
        answered: asyncio.Future[InferenceResponse | GatewayError] = asyncio.get_running_loop().create_future()

        def reply(outcome: InferenceResponse | GatewayError) -> None:
            # A cancellation reaches the future a turn of the loop before it reaches the call.
            if not answered.done():
                answered.set_result(outcome)

        received = time.monotonic()
        call = self._plane.submit(decode_request(message, headers), reply, schedule)
        call.received = received
        try:
            outcome = await answered
        finally:
            # Does nothing once the call is answered.
            self._plane.abandon(call)
        if isinstance(outcome, GatewayError):
            raise outcome
        return call, outcome

    def _count(self, model: str, error: GatewayError) -> None:
        self._metrics.count(ERRORS, self._plane.counted_as(model), error.code)

    # -- Health and metadata -------------------------------------------------------------------------------------------

    async def server_live(self, _message: Any, _context: Context) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _message: Any, _context: Context) -> pb.ServerReadyResponse:
        """Every model is loaded, the rules are known, and no shutdown has begun."""
        return pb.ServerReadyResponse(ready=self._inventory.problem() is None)

    async def model_ready(self, message: pb.ModelReadyRequest, _context: Context) -> pb.ModelReadyResponse:
        """False for a model that is unknown or not loaded, as Triton answers."""
        try:
            self._inventory.version(message.name, message.version or None).require_ready()
        except (NotFound, Unavailable):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, _message: Any, _context: Context) -> pb.ServerMetadataResponse:
        """Only extensions that work are named."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=__version__, extensions=self._extensions)

    async def model_metadata(self, message: pb.ModelMetadataRequest, _context: Context) -> pb.ModelMetadataResponse:
        """Of a version; without a number, of the one that takes most traffic."""
        return pb.ModelMetadataResponse(**self._inventory.metadata(message.name, message.version or None))

    # -- Extensions ----------------------------------------------------------------------------------------------------

    async def model_config(self, message: pb.ModelConfigRequest, _context: Context) -> pb.ModelConfigResponse:
        """The configuration that Triton would have for a version."""
        config = self._inventory.configuration(message.name, message.version or None)
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def model_statistics(
        self, message: pb.ModelStatisticsRequest, _context: Context
    ) -> pb.ModelStatisticsResponse:
        """Of a version, of all versions of a model, or of everything."""
        named = message.name or None, message.version or None
        document = self._inventory.statistics(*named)
        if self._upward is not None:
            document = await self._upward.statistics(*named)
        return ParseDict(document, pb.ModelStatisticsResponse())

    async def repository_index(
        self, message: pb.RepositoryIndexRequest, _context: Context
    ) -> pb.RepositoryIndexResponse:
        """What the model repository holds, and in which state."""
        _check_repository(message)
        return ParseDict({"models": await self._control.index(only_ready=message.ready)}, pb.RepositoryIndexResponse())

    async def repository_load(
        self, message: pb.RepositoryModelLoadRequest, _context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load what is not loaded of a model; answered when the versions take requests."""
        _check_repository(message)
        check_open(is_open=self._control_public)
        version = version_to_load({"parameters": parameters_of(message.parameters)})
        await self._control.load(message.model_name, version)
        return pb.RepositoryModelLoadResponse()

    async def repository_unload(
        self, message: pb.RepositoryModelUnloadRequest, _context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model; answered when what was in flight is, and the memory is free."""
        _check_repository(message)
        check_open(is_open=self._control_public)
        version = version_to_unload({"parameters": parameters_of(message.parameters)})
        await self._control.unload(message.model_name, version)
        return pb.RepositoryModelUnloadResponse()


def internal_error() -> GatewayError:
    """What a client is told of a bug."""
    return GatewayError("internal error; the gateway's log says more")


def _answering(handler: Unary) -> Unary:
    """The handler, with errors turned into statuses."""

    async def answer(message: Any, context: Context) -> Any:
        try:
            if isinstance(message, GatewayError):
                raise message
            return await handler(message, context)
        except GatewayError as error:
            problem = error
        except Exception:
            logger.exception("an RPC failed")
            problem = internal_error()
        return await refuse(context, problem)

    return answer


def _unsupported(name: str) -> Unary:
    reason = NO_SHARED_MEMORY if "SharedMemory" in name else f"{name} is not supported; the gateway has no such thing"

    async def answer(_message: Any, _context: Context) -> Any:
        raise Unsupported(reason)

    return answer


def _codec(method: Any) -> dict[str, Any]:
    message_class, answer_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    def parse(content: bytes) -> Any:
        # An exception here would be answered UNKNOWN and logged as a bug.
        try:
            return message_class.FromString(content)
        except DecodeError as error:
            return InvalidRequest(f"the message is no {method.input_type.full_name}: {error}")

    return {"request_deserializer": parse, "response_serializer": answer_class.SerializeToString}


def _headers(context: Context) -> Mapping[str, str]:
    """The metadata that is text; of equal names the first counts, as over HTTP."""
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(name, value)
    return headers


def _schedule(context: Context) -> Schedule | None:
    """What the client's deadline asks of the queue. gRPC itself ends the call when it passes."""
    remaining = context.time_remaining()
    return None if remaining is None else Schedule(patience=remaining)


def _check_repository(message: Any) -> None:
    """Raises `Unsupported` where the message asks for one of several repositories."""
    if message.repository_name:
        raise Unsupported("repository_name: there is one repository; leave the name empty")
