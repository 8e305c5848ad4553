"""Errors on calls of `Inference`: a gRPC status, with all of the error in its details."""

from __future__ import annotations

from typing import NoReturn

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import DecodeError

from themis_core.errors import (
    BackendFailed,
    DeadlineExceeded,
    Overloaded,
    RequestTooLarge,
    ThemisError,
)
from themis_core.protocol.failures import Failure, to_error, to_failure
from themis_grpc_transport.address import Address
from themis_grpc_transport.facts import failure_from_proto, failure_to_proto
from themis_grpc_transport.v1 import themis_pb2 as pb

DETAILS = "grpc-status-details-bin"
_MAX_TEXT = 1024  # All of an error must fit into 8 KiB of metadata, the limit of many clients.

STATUSES = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported_field": grpc.StatusCode.UNIMPLEMENTED,
    "prompt_too_long": grpc.StatusCode.INVALID_ARGUMENT,
    "request_too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "model_not_found": grpc.StatusCode.NOT_FOUND,
    "adapter_not_found": grpc.StatusCode.NOT_FOUND,
    "request_rejected": grpc.StatusCode.PERMISSION_DENIED,
    "quota_exceeded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "model_file_invalid": grpc.StatusCode.FAILED_PRECONDITION,
    "model_load_failed": grpc.StatusCode.FAILED_PRECONDITION,
    "backend_closed": grpc.StatusCode.UNAVAILABLE,
    "hook_timeout": grpc.StatusCode.UNAVAILABLE,
}


def status_of(code: str) -> grpc.StatusCode:
    """The gRPC status of an error code; `INTERNAL` for all that no caller can mend."""
    return STATUSES.get(code, grpc.StatusCode.INTERNAL)


async def abort(context: grpc.aio.ServicerContext[object, object], error: Exception) -> NoReturn:
    """End a call with an error. Long texts are cut: they travel in the headers."""
    failure = _shortened(to_failure(error))
    status = status_of(failure.codes[0])
    details = pb.Status(code=status.value[0], message=failure.message)
    details.details.add().Pack(failure_to_proto(failure))
    await context.abort(status, failure.message, ((DETAILS, details.SerializeToString()),))
    raise AssertionError("abort returned")


def reason_of(error: BaseException) -> str:
    """Why a call ended, as a clause."""
    if isinstance(error, grpc.aio.AioRpcError):
        text = " ".join((error.details() or "").split()).rstrip(".")
        return f"{error.code().name}: {text}" if text else error.code().name
    return str(error) or type(error).__name__


def unreachable(error: grpc.aio.AioRpcError, address: Address) -> BackendFailed:
    """The error of a client that could not connect, with what is often the cause."""
    found = _failure(error)
    text = found.message.rstrip(".") if found is not None else reason_of(error)
    hint = ""
    if found is None and "refused" not in text:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            hint = " It is no Themis worker, or an older one."
        elif address.secure:
            hint = " It may speak no TLS, or admit only clients with a certificate that it knows."
        elif address.path is None:
            hint = " If it speaks TLS, write grpcs://."
    message = f"The worker at {address.url} cannot be reached: {text}.{hint}"
    return BackendFailed(message, plugin="grpcs" if address.secure else "grpc")


def to_themis(error: grpc.aio.AioRpcError, where: str, plugin: str) -> ThemisError:
    """What a call ended with: the server's own error if it sent one."""
    failure = _failure(error)
    if failure is not None:
        return to_error(failure)
    status, text = error.code(), reason_of(error)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The request was not finished in time.", field="timeout")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return RequestTooLarge(
            f"The server at {where} or its answer is limited: {text}.",
            remedy="Raise max_message_mib in the URLs of server and client.",
            plugin=plugin,
        )
    # A proxy's doing; or HTTP/2's REFUSED_STREAM, before the server has seen the call.
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED or "RST_STREAM with error code 7" in text:
        return Overloaded(f"The server at {where} takes no more: {text}.", plugin=plugin)
    return BackendFailed(f"The server at {where} failed: {text}.", plugin=plugin)


def _failure(error: grpc.aio.AioRpcError) -> Failure | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes):
            try:
                for detail in pb.Status.FromString(value).details:
                    found = pb.Error()
                    if detail.Unpack(found):
                        return failure_from_proto(found)
            except DecodeError:
                return None
    return None


def _shortened(failure: Failure) -> Failure:
    return msgspec.structs.replace(
        failure,
        message=_short(failure.message),
        remedy=_short(failure.remedy) if failure.remedy else None,
        cause=_short(failure.cause) if failure.cause else None,
        problems=tuple(_short(problem, 200) for problem in failure.problems[:8]),
    )


def _short(text: str, most: int = _MAX_TEXT) -> str:
    """At most so many bytes of UTF-8."""
    data = text.encode()
    return text if len(data) <= most else data[: most - 3].decode(errors="ignore") + "…"
